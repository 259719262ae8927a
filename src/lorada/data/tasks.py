"""``TASKS``: every task, by name. A task makes inputs from rows, and metrics from outputs.

The task ``jsonl`` is a file of your own, whose fields decide the form (``row_readings.READINGS``).
"""

from lorada.data.benchmarks.arithmetic import ARITHMETIC
from lorada.data.benchmarks.commonsense import COMMONSENSE
from lorada.data.benchmarks.glue import GLUE
from lorada.data.benchmarks.long_sequence import LONG_SEQUENCE
from lorada.data.benchmarks.summaries_translations import WRITING
from lorada.data.scoring.metrics import (
    accuracy,
    classes,
    exact_match,
    label_sets,
    numbers,
    perplexity,
)
from lorada.data.task import ANY_KIND, Protocol, Task

TASKS: dict[str, Task] = {
    **GLUE,
    **WRITING,
    **COMMONSENSE,
    **ARITHMETIC,
    **LONG_SEQUENCE,
    "jsonl": Task(
        summary="your own file of prompts, chats, labelled texts, choices or plain text",
        benchmark="your own",
        protocols={
            "messages": Protocol("messages", ("decoder",), dict, exact_match),
            "choice": Protocol("choice", ("decoder",), dict, accuracy),
            "prompt": Protocol("prompt", ("decoder", "encoder_decoder"), dict, exact_match),
            "label": Protocol("label", ANY_KIND, dict, classes),
            "labels": Protocol("labels", ANY_KIND, dict, label_sets),
            "score": Protocol("score", ANY_KIND, dict, numbers),
            "text": Protocol("text", ("decoder",), dict, perplexity),
        },
    ),
}
