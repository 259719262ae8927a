"""How scores and differences of scores are written, alike in sentences, tables and terminals."""

import math
from dataclasses import dataclass

from lorada.decision.score_units import PERCENT

NATS = "nats"  # of losses
PERCENT_DECIMALS = 1
LARGE = 1e6  # from here on differences are written with an exponent
NATS_DECIMALS = 3  # at least; of small losses as many as three digits need
MOST_DECIMALS = 6


@dataclass(frozen=True)
class ScoreFormat:
    """How scores in one unit are written.

    Attributes:
        unit: of the scores, such as ``%``; empty if it is not known.
        decimals: of scores and differences; None for four digits of a score, two of a difference.
        least_shown: the smallest difference that is written as a number: one that would be rounded
            below it is only said to be smaller.
    """

    unit: str
    decimals: int | None = None
    least_shown: float = 0.0

    @classmethod
    def of(
        cls, unit: str, margin: float | None = None, smallest: float | None = None
    ) -> "ScoreFormat":
        """Choose decimals and the smallest difference shown, by unit, margin and size of scores.

        Args:
            unit: of the scores.
            margin: that a cheaper method may cost, of which a tenth is still shown.
            smallest: the score that is nearest to zero, of which three digits are shown.
        """
        if unit == PERCENT:
            return cls(unit, PERCENT_DECIMALS, least_shown=0.1)
        least_shown = 0.0
        if margin is not None:
            least_shown = float(f"{margin / 10:.0e}")  # rounded to one digit
        if unit != NATS:
            return cls(unit, None, least_shown)
        decimals = NATS_DECIMALS
        if smallest:
            # 0.0042 has its first digit in the third decimal, and three digits with two more.
            place_of_first_digit = -math.floor(math.log10(abs(smallest)))
            decimals = max(decimals, place_of_first_digit + 2)
        if decimals > MOST_DECIMALS:  # losses of 1e-7 are easier to read with an exponent
            return cls(unit, None, least_shown)
        return cls(unit, decimals, max(least_shown, 10.0**-decimals))

    def number(self, score: float) -> str:
        """A score without its unit."""
        if self.decimals is None:
            return f"{score:.4g}"
        return f"{score:.{self.decimals}f}"

    def score(self, score: float) -> str:
        """A score with its unit: ``71.2 %``."""
        return f"{self.number(score)} {self.unit}".strip()

    def loss(self, loss: float) -> str:
        """An expected loss in a sentence, without its unit: ``0.3``, or ``less than 0.1``."""
        if self._is_too_small(loss):
            return f"less than {self.least_shown:g}"
        return self._difference(loss)

    def short_loss(self, loss: float) -> str:
        """An expected loss in a table: ``0.3``, or ``< 0.1``."""
        if self._is_too_small(loss):
            return f"< {self.least_shown:g}"
        return self._difference(loss)

    def gain(self, gain: float) -> str:
        """A gain without its unit, which may be below zero: ``-0.3``."""
        sign = "-" if gain < 0 else ""
        return f"{sign}{self._difference(abs(gain))}"

    def _is_too_small(self, difference: float) -> bool:
        """Whether a difference would be rounded to less than the smallest that is shown."""
        return difference < self.least_shown / 2

    def _difference(self, difference: float) -> str:
        """A difference as a number, without its unit: with two digits where decimals are free."""
        if self.decimals is not None:
            return f"{difference:.{self.decimals}f}"
        if 10 <= difference < LARGE:  # two digits would be written as 1.2e+02
            return f"{difference:.0f}"
        return f"{difference:.2g}"

    def margin(self, margin: float) -> str:
        """A margin with its unit, with the digits that its user gave."""
        return self.with_unit(f"{margin:.3g}")

    def with_unit(self, difference: str) -> str:
        """A difference that is written already, with its unit: ``0.2 points``."""
        unit = self.unit
        if self.unit == PERCENT:  # what two scores in percent differ by are points
            unit = "point" if difference == "1" else "points"
        return f"{difference} {unit}".strip()
