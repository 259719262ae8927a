"""Fewer cases of a matrix of tests, in which everything still meets that meets in one of them."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import pytest

Features = int | Callable[..., set]


def covering(cases: Sequence[tuple], quick: Features, slow: Features | None = None) -> list:
    """The cases of a matrix in which everything meets; a case that adds nothing is left out.

    Args:
        cases: a value of each axis.
        quick: what meets in a case, of its values: all of it is in a case that is not slow. A
            number is for every combination of so many values.
        slow: the same, for further cases that are marked slow.

    Returns:
        Cases in their order, for ``pytest.mark.parametrize``.
    """
    # In their own order the first value would be in most cases.
    order = random.Random(0).sample(cases, len(cases))
    chosen: dict[tuple, list] = {}
    for asked, marks in ((quick, []), (slow, [pytest.mark.slow])):
        if asked is not None:
            features = partial(_together, asked) if isinstance(asked, int) else asked
            seen = {each for case in chosen for each in features(*case)}
            for case in order:
                if not features(*case) <= seen:
                    chosen.setdefault(case, marks)
                    seen |= features(*case)
    return [pytest.param(*case, marks=chosen[case]) for case in cases if case in chosen]


def _together(many: int, *case: object) -> set:
    """Every combination of so many values, each with the number of its axis."""
    return set(combinations(enumerate(case), many))
