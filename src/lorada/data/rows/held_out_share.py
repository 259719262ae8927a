"""Which rows are held out of a file: a share of each class, rows of one group together."""

import random
import re
from collections import Counter, defaultdict

from lorada.data.rows.row_content import content_of
from lorada.support.row_sources import Row

SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share_of(text: str | None) -> float | None:
    """The share that ``20%`` names, from 0 to 1; None for the name of a file.

    Raises:
        ValueError: for a share of 0% or less, or of 100% or more.
    """
    match = SHARE.fullmatch(text or "")
    if match is None:
        return None
    share = float(match[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"{text} of the rows cannot be held out: give a share between 0% and 100%")
    return share


def draw_held_out(rows: list[Row], share: float, seed: int) -> list[int]:
    """The indices of the rows that are held out, in order.

    Rows of one group stay together, and without groups those with equal content. Each class loses
    the same share (rows with several labels count as of the rarest of these), rounded so that the
    shares of all classes add up; a row that is the only one of its class is learned.
    """
    generator = random.Random(seed)
    groups_of_classes = _groups_of_classes(rows)
    held_out: list[int] = []
    rest = 0.0  # rows that the classes before have lost too few of, at most one
    for name in sorted(groups_of_classes):
        groups = groups_of_classes[name]
        share_of_class = share * sum(map(len, groups)) + rest
        count = 0
        generator.shuffle(groups)
        for group in groups[1:]:  # the first is learned
            # A group is taken if more than half of it still belongs to the share.
            if count + len(group) / 2 <= share_of_class:
                held_out += group
                count += len(group)
        rest = min(share_of_class - count, 1.0)
    if not held_out:
        raise ValueError(
            f"{100 * share:g}% of {len(rows)} rows holds out none: give more rows or a larger share"
        )
    return sorted(held_out)


def _groups_of_classes(rows: list[Row]) -> dict[str, list[list[int]]]:
    """The groups of each class, a group as the indices of its rows."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        # Copies of a row that is learned would be held out as if they were new.
        groups[str(row["group"]) if "group" in row else content_of(row)].append(index)
    classes = _class_of_each(rows)
    groups_of_classes: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        groups_of_classes[classes[group[0]]].append(group)
    return groups_of_classes


def _class_of_each(rows: list[Row]) -> list[str]:
    """The class of each row; of several labels the one that fewest rows have, or none."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.get("labels", ()))
    classes = []
    for row in rows:
        if "labels" in row:
            rarest = min(row["labels"], key=lambda label: (counts[label], label), default="")
            classes.append(rarest)
        else:
            classes.append(str(row.get("label")))
    return classes
