"""How scores of a metric are written: they are higher for the better one, and shown as they are."""

from lorada.support.metric_names import (
    ERROR,
    LOSS,
    ROW_LOSS,
    as_score,
    lower_is_better,
    rows_metric,
)

CODE = ".py:"  # in the name of a user's function
UNITS = {LOSS: "nats per token", ROW_LOSS: "nats per row", ERROR: "the unit of the rows"}


def windows_overlap(metric: str) -> bool:
    """Whether rows are windows of one text that share tokens, so that no test of rows is right."""
    return metric.startswith("perplexity_")


def number_form(metric: str) -> str:
    """The format of a number."""
    by = rows_metric(metric)
    return ".3f" if by in (LOSS, ROW_LOSS) else ".4g" if by == ERROR or CODE in by else ".1f"


def unit_of(metric: str) -> str:
    """What a score counts, and which end is better if it is the lower one."""
    by = rows_metric(metric)
    unit = UNITS.get(by, f"what {by} gives" if CODE in by else "percent")
    return f"{unit}, less is better" if lower_is_better(metric) else unit


def title_of(metric: str) -> str:
    """The name of what is compared, for headings and axes."""
    return {LOSS: "loss", ROW_LOSS: "loss", ERROR: "mean error"}.get(rows_metric(metric), "score")


def best_of(metric: str) -> str:
    """What the best candidate has, in words."""
    return f"{'lowest' if lower_is_better(metric) else 'highest'} {title_of(metric)}"


def shown_score(score: float | None, metric: str) -> str:
    """A score in a sentence."""
    if score is None:
        return "none"
    number = format(as_score(score, metric), number_form(metric))
    return f"{number}{_behind(metric, '%')}"


def shown_gap(gap: float, metric: str) -> str:
    """A difference of two scores in a sentence."""
    return f"{gap:{number_form(metric)}}{_behind(metric, ' points')}"


def _behind(metric: str, percent: str) -> str:
    """The unit behind a number; a user's own is not known."""
    by = rows_metric(metric)
    if by in (LOSS, ROW_LOSS):
        return f" {UNITS[by]}"
    return "" if by == ERROR or CODE in by else percent
