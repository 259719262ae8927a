"""Which unit scores have: percent, also where they are shares of one, or one that a user names.

A point is one in a hundred only where scores are percent. So these are recognised, and not guessed:
scores between 0 and 1 are shares, right and wrong are 1 and 0 or 100 and 0, and all else is percent
only if the user or lorada itself says so.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from lorada.decision.run_variances import Scores

PERCENT = "%"
PERCENT_NAMES = (PERCENT, "percent")  # as a user may call it
MARGIN = 1.0  # points of percent that a cheaper method may cost
ERRORS_MARGIN = 0.2  # of the best method's errors, which near 100 % are less than five points
LOSS_MARGIN = 0.02  # of the lowest loss
SMALL = 1e-3  # the largest of scores in a unit that is too large for them
HALF = 50.0  # scores of 0 to 100 beside shares are percent of the same if one is above it


@dataclass(frozen=True)
class ScoreUnit:
    """The unit of scores, and what makes it of them as they are given."""

    name: str  # ``%``, or as the user calls it; empty where it is not known
    factor: float = 1.0


UNKNOWN = ScoreUnit("")


def named_unit(unit: str) -> ScoreUnit:
    """The unit that a user names, with the factor 1, as scores are then in it; ``percent`` is %."""
    name = unit.strip()
    if name in PERCENT_NAMES:
        return ScoreUnit(PERCENT)
    return ScoreUnit(name)


def unit_of(methods: Collection[Scores], baselines: Collection[Scores]) -> ScoreUnit:
    """Recognise the unit of scores, of which the higher is better: percent, or not known.

    Scores that are all between 0 and 1 are shares, and become percent by the factor 100. Scores of
    0 and 100 alone are right and wrong in percent. All others may be of any unit.
    """
    if all(_are_shares(table) for table in (*methods, *baselines)):
        return ScoreUnit(PERCENT, 100.0)
    # Baselines may be means over seeds, so those need not be right or wrong.
    baselines_fit = all(_within_percent(table) for table in baselines)
    if baselines_fit and all(right_or_wrong(table) for table in methods):
        return ScoreUnit(PERCENT)
    return UNKNOWN


def zoom_of(tables: Collection[Scores]) -> float:
    """A power of two that brings the largest of small scores to between 1 and 2; 1 for others.

    Differences below a billionth count as rounding errors, which those of a loss of 1e-8 are not.
    """
    largest = max((float(np.abs(table).max()) for table in tables), default=0.0)
    if largest == 0 or largest >= SMALL:
        return 1.0
    return float(2.0 ** -np.floor(np.log2(largest)))


def right_or_wrong(scores: Scores) -> bool:
    """Whether all scores are 0 or 100."""
    return bool(np.isin(scores, (0.0, 100.0)).all())


def refuse_mixed(tables: Mapping[str, Scores], unit: str | None, *, lower_is_better: bool) -> None:
    """Refuse shares of one beside percent, which would make one method 100 times as good.

    Scores of 0 and 1 beside 0 and 100 are refused in any unit; others only where it is not said,
    and not of losses, where a small one beside a large one is nothing rare.

    Args:
        tables: name → runs × rows, of methods and of what needs no training.
        unit: that the user names; None if the user says nothing.
        lower_is_better: whether scores are losses or errors.

    Raises:
        ValueError: naming a run of either kind; also where percent are named for 0 and 1 alone.
    """
    only_right_or_wrong = unit is not None or lower_is_better
    if only_right_or_wrong:
        shares = _first_run(tables, _is_0_or_1)
        percent = _first_run(tables, _is_0_or_100)
    else:
        shares = _first_run(tables, _is_share)
        percent = _first_run(tables, _is_percent)
    if shares and percent:
        remedy = "give all in one unit"
        if unit is None:
            remedy += ", or say which it is (unit)"
        raise ValueError(
            f"the scores of {shares} are shares (0 to 1) and those of {percent} percent (0 to "
            f"100): {remedy}"
        )
    # Whoever names percent and gives 0 and 1 alone has shares: 1 is hardly one percent of each row.
    all_are_shares = bool(shares) and all(_are_shares(table) for table in tables.values())
    if unit == PERCENT and all_are_shares:
        raise ValueError(
            f"the scores of {shares} are 0 and 1, which is not right and wrong in percent: give "
            "0 and 100, or leave the unit out"
        )


def default_margin(tables: Collection[Scores], unit: str, *, lower_is_better: bool) -> float | None:
    """What a cheaper method may cost where the user does not say it; None if there is no default.

    Of losses it is a share of the lowest. Of percent it is a point, or a share of the best method's
    errors if that is less. Scores in another unit have no default.

    Args:
        tables: of each method, in their unit.
        unit: its name.
        lower_is_better: whether they are losses or errors, of which a share can be taken only if
            none is negative.
    """
    if not tables:
        return None
    means = [float(table.mean()) for table in tables]
    if lower_is_better:
        lowest = min(float(table.min()) for table in tables)
        if lowest < 0:
            return None
        return LOSS_MARGIN * min(means)
    if unit != PERCENT:
        return None
    errors = 100.0 - max(means)
    if errors < 0:  # changes in percent may be above 100, and have no errors
        return MARGIN
    return min(MARGIN, ERRORS_MARGIN * errors)


def _first_run(tables: Mapping[str, Scores], fits: Callable[[Scores], bool]) -> str:
    """The first run whose scores fit, as an error names it; empty if there is none."""
    for name, table in tables.items():
        for number, run in enumerate(table, 1):
            if not fits(run):
                continue
            if len(table) == 1:  # the method's name is enough
                return name
            return f"{name}, run {number}"
    return ""


# What a run tells of its unit. One that is all wrong tells nothing: 0 is 0 in any unit.
def _is_0_or_1(run: Scores) -> bool:
    return bool(np.isin(run, (0.0, 1.0)).all() and run.max() > 0)


def _is_0_or_100(run: Scores) -> bool:
    return right_or_wrong(run) and bool(run.max() > 0)


def _is_share(run: Scores) -> bool:
    return _are_shares(run) and bool(run.max() > 0)


def _is_percent(run: Scores) -> bool:
    return _within_percent(run) and bool(run.max() > HALF)


def _are_shares(scores: Scores) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1)


def _within_percent(scores: Scores) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 100)
