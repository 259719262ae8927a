"""How scores and differences of scores are written, alike in sentences, tables and terminals."""

from dataclasses import dataclass

from lorada.decision.score_units import PERCENT


@dataclass(frozen=True)
class ScoreFormat:
    """How scores in one unit are written: percent to a tenth, others to four digits.

    Attributes:
        unit: of the scores, such as ``%``; empty if it is not known.
        least_shown: the smallest difference that is written as a number: one that would be rounded
            below it is only said to be smaller.
    """

    unit: str
    least_shown: float = 0.0

    def number(self, score: float) -> str:
        """A score without its unit."""
        if self.unit == PERCENT:
            return f"{score:.1f}"
        return f"{score:.4g}"

    def score(self, score: float) -> str:
        """A score with its unit: ``71.2 %``."""
        return f"{self.number(score)} {self.unit}".strip()

    def difference(self, difference: float) -> str:
        """A difference of scores without its unit, to fewer digits than these."""
        if self.unit == PERCENT:
            return f"{difference:.1f}"
        return f"{difference:.2g}"

    def is_too_small(self, difference: float) -> bool:
        """Whether a difference is only said to be smaller than the smallest that is shown."""
        return difference < self.least_shown / 2

    def loss(self, loss: float) -> str:
        """An expected loss in a sentence, without its unit: ``0.3``, or ``less than 0.1``."""
        if self.is_too_small(loss):
            return f"less than {self.least_shown:g}"
        return self.difference(loss)

    def short_loss(self, loss: float) -> str:
        """An expected loss in a table: ``0.3``, or ``< 0.1``."""
        if self.is_too_small(loss):
            return f"< {self.least_shown:g}"
        return self.difference(loss)

    def margin(self, margin: float) -> str:
        """A margin with its unit, with the digits that its user gave."""
        return self.with_unit(f"{margin:.3g}")

    def with_unit(self, difference: str) -> str:
        """A difference that is written already with its unit: ``0.2 points``."""
        unit = self.unit
        if self.unit == PERCENT:
            unit = "point" if difference == "1" else "points"
        return f"{difference} {unit}".strip()
