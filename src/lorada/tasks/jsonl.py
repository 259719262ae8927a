"""The task ``jsonl``: fine-tune on your own file; its fields say what is asked of the model.

``prompt``/``response``; ``messages`` (through the tokenizer's chat template, the last assistant
turn is the response); ``text``/``label`` and ``text``/``score``, with a second text in
``text_pair``; ``prompt``/``candidates``/``answer`` (the likelier text is chosen); ``text`` alone.
"""

from lorada.tasks.metrics import accuracy, correlations, exact_match, perplexity
from lorada.tasks.task import ANY_KIND, Protocol, Task, same

TASK = Task(
    summary="your own file of prompts, chats, labelled texts, choices or plain text",
    benchmark="your own",
    protocols={
        "messages": Protocol("messages", ("decoder",), same, exact_match),
        "choice": Protocol("choice", ("decoder",), same, accuracy),
        "prompt": Protocol("prompt", ("decoder", "encoder_decoder"), same, exact_match),
        "label": Protocol("label", ANY_KIND, same, accuracy),
        "score": Protocol("score", ANY_KIND, same, correlations),
        "text": Protocol("text", ("decoder",), same, perplexity),
    },
)
