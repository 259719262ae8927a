"""How scores by a metric are called and written in a report.

Scores are higher for the better one until they are shown: then a loss or an error is as users know
it, and the lower one is better.
"""

from dataclasses import dataclass

from lorada.decision.score_format import ScoreFormat
from lorada.decision.score_units import PERCENT as PERCENT_UNIT
from lorada.support.metric_names import ERROR, LOSS, rows_metric
from lorada.support.row_sources import CODE


@dataclass(frozen=True)
class Scale:
    """How scores by a metric are called and written."""

    title: str  # what is compared, for headings and axes
    unit: str  # what a score counts, and which end is better if it is the lower one
    behind: str = ""  # the unit behind a score
    gap: str = ""  # and behind a difference

    @property
    def unit_to_decide(self) -> str:
        """The unit as a decision has it; empty if it is not known."""
        return self.behind.strip()

    @property
    def score_format(self) -> ScoreFormat:
        """How scores are written where nothing is decided of them."""
        return ScoreFormat.of(self.unit_to_decide)

    def score(self, score: float) -> str:
        """A score with its unit, right behind the number if it is percent."""
        return f"{self.score_format.number(score)}{self.behind}"

    def difference(self, difference: float) -> str:
        """A difference of scores with its unit."""
        return f"{self.score_format.number(difference)}{self.gap}"


PERCENT = Scale("score", "percent", PERCENT_UNIT, " points")
# Per token; of classes and choices per row.
LOSSES = Scale("loss", "nats, less is better", " nats", " nats")
ERRORS = Scale("mean error", "the unit of the rows, less is better")


def scale_of(metric: str, own_unit: str) -> Scale:
    """How scores by a metric are written; ``own_unit`` is that of a user's function, if known."""
    by = rows_metric(metric)
    if by == LOSS:
        return LOSSES
    if by == ERROR:
        return ERRORS
    if CODE not in by or own_unit == PERCENT_UNIT:
        return PERCENT
    behind = f" {own_unit}" if own_unit else ""
    return Scale("score", own_unit or f"what {by} gives", behind, behind)


def windows_overlap(metric: str) -> bool:
    """Whether rows are windows of one text that share tokens, so that no test of rows is right."""
    return metric.startswith("perplexity_")
