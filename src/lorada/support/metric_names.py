"""What the name of a metric says: which end of it is better, and what single rows are compared by.

Methods are compared by scores, which are higher for the better one, so a loss or an error counts as
minus itself there. Users see the loss or the error.
"""

from typing import Any

LOSS = "loss"  # mean negative log-likelihood, in nats per token
ERROR = "mae"  # mean distance from the right number, in the unit of the rows
# Metrics that are no mean over rows → the metric of single rows that tests take in their place.
BY_ROW = {
    "matthews": "accuracy",
    "macro_f1": "balanced_accuracy",
    "micro_f1": "f1",
    "pearson": ERROR,
}


def rows_metric(metric: str) -> str:
    """The metric of single rows by which methods are compared, if ``metric`` is what is shown."""
    return LOSS if metric.startswith("perplexity") else BY_ROW.get(metric, metric)


def lower_is_better(metric: str) -> bool:
    """Whether the rows of a metric are better the lower they are."""
    return rows_metric(metric) in (LOSS, ERROR)


def as_score(value: float, metric: str) -> float:
    """A row's value of a metric as a score, which is higher for the better one; and back again."""
    return -value if lower_is_better(metric) else value


def main_metric(metrics: dict[str, Any]) -> str:
    """The name of a task's first metric, which tables show under the task's name."""
    found = next((key for key in metrics if key != "n"), None)
    if found is None:
        raise ValueError("a stored result has a task without a score: delete it and run it again")
    return found
