"""The task ``jsonl``: fine-tune on your own file. The fields of its rows decide the form:

- ``prompt``, ``response``;
- ``messages``: a chat, put through the tokenizer's chat template; the last turn is the response;
- ``text``, ``label`` or ``text``, ``score``, also with a second text in ``text_pair``;
- ``prompt``, ``candidates``, ``answer``: the likeliest candidate is chosen;
- ``text`` alone.
"""

from lorada.tasks.metrics import accuracy, correlations, exact_match, perplexity
from lorada.tasks.task import ANY_KIND, Protocol, Task, unchanged

TASK = Task(
    summary="your own file of prompts, chats, labelled texts, choices or plain text",
    benchmark="your own",
    protocols={
        "messages": Protocol("messages", ("decoder",), unchanged, exact_match),
        "choice": Protocol("choice", ("decoder",), unchanged, accuracy),
        "prompt": Protocol("prompt", ("decoder", "encoder_decoder"), unchanged, exact_match),
        "label": Protocol("label", ANY_KIND, unchanged, accuracy),
        "score": Protocol("score", ANY_KIND, unchanged, correlations),
        "text": Protocol("text", ("decoder",), unchanged, perplexity),
    },
)
