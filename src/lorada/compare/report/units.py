"""How scores of a metric are written: losses and errors, minus themselves there, as they are."""

from lorada.support.metric_names import ERROR, LOSS, as_score, lower_is_better, rows_metric

CODE = ".py:"  # in the name of a user's function, whose unit is not known
# Of rows → the name of what is compared, its unit, and how numbers of it and differences end.
LOSSES = "loss", "nats per token", " nats per token", " nats per token"
ERRORS = "mean error", "the unit of the rows", "", ""
PERCENT = "score", "percent", "%", " points"


def _words(metric: str) -> tuple[str, str, str, str]:
    by = rows_metric(metric)
    own = "score", f"what {by} gives", "", ""
    return {LOSS: LOSSES, ERROR: ERRORS}.get(by, own if CODE in by else PERCENT)


def unit_behind(metric: str) -> str:
    """The unit that stands behind a score; empty for one of the user's own."""
    return _words(metric)[2].strip()


def windows_overlap(metric: str) -> bool:
    """Whether rows are windows of one text that share tokens, so that no test of rows is right."""
    return metric.startswith("perplexity_")


def number_form(metric: str) -> str:
    """The format of a number."""
    return {PERCENT: ".1f", LOSSES: ".3f"}.get(_words(metric), ".4g")


def title_of(metric: str) -> str:
    """The name of what is compared, for headings and axes."""
    return _words(metric)[0]


def unit_of(metric: str) -> str:
    """What a score counts, and which end is better if it is the lower one."""
    return _words(metric)[1] + (", less is better" if lower_is_better(metric) else "")


def best_of(metric: str) -> str:
    """What the best candidate has, in words."""
    return f"{'lowest' if lower_is_better(metric) else 'highest'} {title_of(metric)}"


def shown_score(score: float | None, metric: str) -> str:
    """A score in a sentence."""
    if score is None:
        return "none"
    return f"{as_score(score, metric):{number_form(metric)}}{_words(metric)[2]}"


def shown_gap(gap: float, metric: str) -> str:
    """A difference of two scores in a sentence."""
    return f"{gap:{number_form(metric)}}{_words(metric)[3]}"
