"""Holds out a share of the rows, such as 20%: with a seed, by classes, copies on one side."""

import random
import re
from collections import defaultdict

from lorada.data.rows import content_of
from lorada.support.row_sources import Row

SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share_of(text: str | None) -> float | None:
    """The share that ``20%`` names, from 0 to 1; None for the name of a file."""
    found = SHARE.fullmatch(text or "")
    if found is None:
        return None
    share = float(found[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"{text} of the rows cannot be held out: give a share between 0% and 100%")
    return share


def drawn(rows: list[Row], share: float, seed: int) -> list[int]:
    """The indices of the rows that are held out, in order.

    Rows with equal content stay together. Each class loses the same share, rounded so that the
    shares of all classes add up; a row that is the only one of its class is learned.
    """
    copies: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        copies[content_of(row)].append(index)
    classes: dict[str, list[list[int]]] = defaultdict(list)
    for group in copies.values():
        classes[str(rows[group[0]].get("label"))].append(group)
    chance, found, rest = random.Random(seed), list[int](), 0.0
    for name in sorted(classes):
        groups, before = classes[name], len(found)
        wanted = share * sum(map(len, groups)) + rest
        chance.shuffle(groups)
        for group in groups[1:]:  # the first is learned
            if len(found) - before + len(group) / 2 <= wanted:
                found += group
        rest = min(wanted - (len(found) - before), 1.0)
    if not found:
        raise ValueError(
            f"{100 * share:g}% of {len(rows)} rows holds out none: give more rows or a larger share"
        )
    return sorted(found)
