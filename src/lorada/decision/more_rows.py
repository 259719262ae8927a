"""What a method gains from more training rows: all of them against half of them, as measured."""

from collections.abc import Sequence

from lorada.decision.run_variances import Common, Scores
from lorada.decision.statistics import Estimate, by_group, difference


def gain_from_rows(
    all_rows: Scores,
    fewer_rows: Scores,
    others: Sequence[Scores] = (),
    groups: Sequence[object] | None = None,
) -> Estimate:
    """The difference in mean scores of one method, trained on all rows and on fewer of them.

    It is that of two methods: paired by held-out row, with runs that vary on both sides. Two runs
    on fewer rows say little about how runs vary, so those of all methods moderate it.

    Args:
        all_rows: seeds × held-out rows of the method trained on all training rows.
        fewer_rows: the same trained on fewer of them; it may have another number of seeds.
        others: the same of the other methods, and of the method on still fewer rows.
        groups: of each held-out row; None if each is independent of the others.
    """
    tables = [all_rows, fewer_rows, *others]
    if groups is not None:
        tables = [by_group(scores, groups) for scores in tables]
    return difference(tables[0], tables[1], Common.of(tables))
