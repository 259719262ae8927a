"""The unit of a score, by the metric that its rows have (``data/row_scores.py``)."""

ERROR = "pearson"  # the metric of rows whose right answer is a number


def is_loss(metric: str) -> bool:
    """Whether a score is minus a loss in nats per token."""
    return metric.startswith("perplexity")


def windows_overlap(metric: str) -> bool:
    """Whether rows are windows of one text that share tokens, so that no test of rows is right."""
    return metric.startswith("perplexity_")


def number_form(metric: str) -> str:
    """The format of a score."""
    return ".3f" if is_loss(metric) else ".1f"


def unit_of(metric: str) -> str:
    """What a score counts."""
    if is_loss(metric):
        return "minus the loss in nats per token"
    if metric == ERROR:
        return "minus the mean error, in percent of the range"
    return "percent"


def shown_score(score: float | None, metric: str) -> str:
    """A score in a sentence."""
    if score is None:
        return "none"
    if is_loss(metric):
        return f"{score:.3f} (minus the loss)"
    return f"{score:.1f} (minus the error)" if metric == ERROR else f"{score:.1f}%"


def shown_gap(gap: float, metric: str) -> str:
    """A difference of two scores in a sentence."""
    return f"{gap:.3f} nats per token" if is_loss(metric) else f"{gap:.1f} points"
