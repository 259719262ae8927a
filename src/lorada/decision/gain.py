"""What a training gains over the best of what needs none."""

from dataclasses import dataclass

import numpy as np

from lorada.decision.evidence import Evidence
from lorada.decision.run_variances import TINY
from lorada.decision.statistics import ALPHA, LEVEL, gain


@dataclass(frozen=True)
class Gain:
    """What a method gains over the best score without training.

    Attributes:
        method: the one to take; if none is, that of the highest score.
        over: the name of the best score without training.
        value: by how much the method is better, in the unit of the scores; of losses, how much
            lower it is. Where the method was chosen for its score, what is expected on new rows.
        low: the lower end of its 95 % confidence interval.
        high: the upper end.
        is_shown: whether it is significantly above zero.
    """

    method: str
    over: str
    value: float
    low: float
    high: float
    is_shown: bool


def gain_of(evidence: Evidence, method: str, flattery: float) -> Gain | None:
    """The gain of a method, as it is shown; None if nothing is scored without training.

    Args:
        evidence: of the decision.
        method: whose gain it is.
        flattery: by how much its mean score is above what is expected on new rows.
    """
    tables = evidence.without_training
    if not tables:
        return None
    over = max(tables, key=lambda name: float(tables[name].mean()))
    scores, baseline = evidence.scores[method], tables[over]
    others = [evidence.scores[name] for name in evidence.tested if name != method]
    measured = gain(scores, baseline, others)
    low, high = measured.interval(LEVEL)
    # As in tests of pairs: coins would put all rows that differ on one side that often.
    differences = scores.mean(axis=0) - baseline.mean(axis=0)
    rows_that_differ = int(np.count_nonzero(np.abs(differences) > TINY))
    is_shown = low - flattery > TINY and 2.0 ** (1 - rows_that_differ) < ALPHA
    return Gain(
        method=method,
        over=over,
        value=evidence.scale.difference(measured.value - flattery),
        low=evidence.scale.difference(low - flattery),
        high=evidence.scale.difference(high - flattery),
        is_shown=is_shown,
    )
