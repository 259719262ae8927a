"""Letters that show which of several names differ, as tables of tests have them."""

from collections.abc import Sequence


def letters(names: Sequence[str], different: set[frozenset[str]]) -> dict[str, str]:
    """Letters such that two names share one if, and only if, they are not different.

    A letter stands for a largest group of names of which no two are different. Groups that
    are not needed to show a pair are left out.

    Args:
        names: in the order of the letters: the first name has an ``a``.
        different: the pairs of names that differ.
    """
    groups = [set(names)] if names else []
    for pair in sorted(map(sorted, different)):
        split = []
        for group in groups:
            split += [group - {name} for name in pair] if group.issuperset(pair) else [group]
        groups = [g for i, g in enumerate(split) if not _covered(g, split[:i], split[i + 1 :])]
    for group in list(groups):
        others = [other for other in groups if other is not group]
        pairs = [{x, y} for x in group for y in group]  # of a name with itself, too
        if all(any(pair <= other for other in others) for pair in pairs):
            groups = others
    place = {name: index for index, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    return {
        name: "".join(_letter(i) for i, group in enumerate(groups) if name in group)
        for name in names
    }


def _covered(group: set[str], before: list[set[str]], after: list[set[str]]) -> bool:
    """Whether another group holds all of this one; of two equal groups the first stays."""
    return any(group <= other for other in before) or any(group < other for other in after)


def _letter(index: int) -> str:
    """A to z, then a2 to z2 and so on."""
    turn, place = divmod(index, 26)
    return chr(ord("a") + place) + (str(turn + 1) if turn else "")
