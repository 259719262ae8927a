"""``covering``: which cases of a matrix run every time, and which only with the slow tests."""

import random
from collections.abc import Sequence
from itertools import combinations

import pytest


def covering(cases: Sequence[tuple], together: int) -> list:
    """The cases of a matrix, most of them marked slow.

    Args:
        cases: a value of each axis.
        together: every combination of so many values that a case has is in a case that is not slow.
            With 1 every value of each axis is tried, with 2 also every two of them.

    Returns:
        All cases in their order, for ``pytest.mark.parametrize``.
    """
    order = list(range(len(cases)))
    random.Random(0).shuffle(order)  # in their own order the first value would be in most cases
    kept, seen = set(), set()
    for i in order:
        # Every combination of so many values, each with the number of its axis.
        new = set(combinations(enumerate(cases[i]), together)) - seen
        if new:
            kept.add(i)
            seen |= new
    return [
        case if i in kept else pytest.param(*case, marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


def few_slow(cases: list, most: int) -> list:
    """The cases of ``covering`` with ``most`` of the slow ones, evenly spread over the list."""
    slow = [i for i, case in enumerate(cases) if hasattr(case, "marks")]
    kept = {slow[i * len(slow) // most] for i in range(most)}
    return [case for i, case in enumerate(cases) if i in kept or not hasattr(case, "marks")]
