"""Which tests ``make test`` runs, and which are left to ``make test-more``.

``make test`` has every contract once, in three minutes on two cores. Left to the second tier are

- tests that took more than ``LONGEST`` seconds (``durations.txt``);
- of a test with many cases all but ``MOST_CASES``, evenly spread over the list.

A test marked ``first`` stays in the first tier with all its cases. ``durations.txt`` is written by
``pytest -n 2 -m "not slow and not gpu" --durations=0 -vv | python tests/tiers.py``.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

DURATIONS = Path(__file__).with_name("durations.txt")
LONGEST = 1.0  # seconds
MOST_CASES = 4
LINE = re.compile(r"^([0-9.]+)s (?:call|setup|teardown) +(tests/\S+::.+)$")


def mark_second_tier(items: list[pytest.Item]) -> None:
    """Mark what the second tier has."""
    long = _durations()
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("first") is None:
            if long.get(item.nodeid, 0.0) > LONGEST:
                item.add_marker("more")
            else:
                cases[item.nodeid.partition("[")[0]].append(item)
    for same in cases.values():
        kept = {round(i * (len(same) - 1) / (MOST_CASES - 1)) for i in range(MOST_CASES)}
        for place, item in enumerate(same):
            if len(same) > MOST_CASES and place not in kept:
                item.add_marker("more")


def _durations() -> dict[str, float]:
    """Seconds of the tests that took more than ``LONGEST``, by their names."""
    lines = DURATIONS.read_text(encoding="utf-8").splitlines() if DURATIONS.is_file() else []
    return {name: float(seconds) for seconds, _, name in (line.partition(" ") for line in lines)}


def main() -> None:
    """Write ``durations.txt`` from the output of pytest."""
    found: dict[str, float] = defaultdict(float)
    for line in sys.stdin:
        if fits := LINE.match(line.strip()):
            found[fits[2]] += float(fits[1])
    kept = sorted(name for name, seconds in found.items() if seconds > LONGEST)
    DURATIONS.write_text("".join(f"{found[name]:.1f} {name}\n" for name in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
