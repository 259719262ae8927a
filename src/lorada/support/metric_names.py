"""The metrics that rows of each form can be scored by, and what the name of a metric says.

Which end of it is better, and what single rows are compared by.

Methods are compared by scores, which are higher for the better one, so a loss or an error counts as
minus itself there. Users see the loss or the error.
"""

from collections.abc import Iterable

from lorada.support.row_sources import Form

LOSS = "loss"  # mean negative log-likelihood, in nats per token
LOSS_ROWS = "loss_n"  # beside a loss: how many rows it covers, if these are not all
ERROR = "mae"  # mean distance from the right number, in the unit of the rows
# Metrics that are no mean over rows → the metric of single rows that tests take in their place.
BY_ROW = {
    "matthews": "accuracy",
    "macro_f1": "balanced_accuracy",
    "micro_f1": "f1",
    "pearson": ERROR,
}
CLASS_METRICS = "balanced_accuracy", "macro_f1"  # that count each class alike
FREE: tuple[Form, ...] = ("messages", "prompt")  # forms whose right answer is a free text
FUNCTION = "FILE.py:function"  # how a user's own is named, for these forms
# The metrics that rows of each form can be scored by, the usual one first; responses have two.
NAMES: dict[Form, tuple[str, ...]] = {
    **dict.fromkeys(FREE, ("loss", "exact_match", "contains", "json_match", "rougeL", "chrf",
                           *CLASS_METRICS)),
    "label": ("accuracy", *CLASS_METRICS, "loss"),
    "labels": ("f1", "micro_f1", "exact_match", "loss"),
    "choice": ("accuracy", "loss"),
    "score": (ERROR,),
    "text": ("perplexity", "loss"),
}  # fmt: skip
# How rows of a form are called where users read of them; chats have the metrics of prompts.
ROWS_CALLED: dict[Form, str] = {
    "prompt": "prompts and chats", "label": "classes", "labels": "several labels",
    "choice": "choices", "score": "numbers", "text": "plain text",
}  # fmt: skip


def names_for(form: Form) -> str:
    """The metrics that rows of a form can be scored by, as a user reads them."""
    names = ", ".join(NAMES[form])
    if form in FREE:
        return f"{names} or {FUNCTION}"
    return names


def names_in_words() -> str:
    """All metrics that rows of a user's own can be scored by, by the kind of rows."""
    names_by_rows = [f"{called}: {names_for(form)}" for form, called in ROWS_CALLED.items()]
    return f"what rows of your own are scored by; {'; '.join(names_by_rows)}"


def rows_metric(metric: str) -> str:
    """The metric of single rows by which methods are compared, if ``metric`` is what is shown."""
    if metric.startswith("perplexity"):  # at a length too, such as perplexity_2048
        return LOSS
    return BY_ROW.get(metric, metric)


def lower_is_better(metric: str) -> bool:
    """Whether the rows of a metric are better the lower they are."""
    return rows_metric(metric) in (LOSS, ERROR)


def as_score(value: float, metric: str) -> float:
    """A row's value of a metric as a score, which is higher for the better one; and back again."""
    return -value if lower_is_better(metric) else value


def main_metric(metrics: Iterable[str]) -> str:
    """The name of a task's first metric, which tables show under the task's name.

    Raises:
        ValueError: if there is no metric, in a stored result that is broken.
    """
    for name in metrics:
        if name != "n":  # how many rows were scored
            return name
    raise ValueError("a stored result has a task without a score: delete it and run it again")
