"""Which tests ``make test`` runs, and which are left to ``make test-more``.

``make test`` has every contract once, in three minutes on two cores. Left to the second tier are

- tests and cases that are marked ``more`` where they stand, because they take more than a second;
- of a test with many cases all but ``MOST_CASES``, evenly spread over the list.

A test marked ``first`` stays in the first tier with all its cases.
"""

from collections import defaultdict

import pytest

MOST_CASES = 4


def mark_second_tier(items: list[pytest.Item]) -> None:
    """Mark the cases that the second tier has, besides those that are marked in their files."""
    cases_by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        is_placed = item.get_closest_marker("first") or item.get_closest_marker("more")
        if is_placed is None:
            cases_by_test[item.nodeid.partition("[")[0]].append(item)
    for cases in cases_by_test.values():
        if len(cases) <= MOST_CASES:
            continue
        first_tier = {round(i * (len(cases) - 1) / (MOST_CASES - 1)) for i in range(MOST_CASES)}
        for index, item in enumerate(cases):
            if index not in first_tier:
                item.add_marker("more")
