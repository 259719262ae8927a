"""What methods gain on the held-out rows, and what they lose on rows that a model should still do.

Both are differences by row from what needs no training: the gain from the best of the scores
without training, the loss elsewhere from the base on the same rows. So both have the intervals and
tests of scores (``decision.statistics``): of rows and runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, ScoredRun
from lorada.compare.stored_losses import KeptLosses, saved_losses
from lorada.compare.stored_plan import KEPT
from lorada.decision.check_scores import check_score_tables
from lorada.decision.gather_evidence import gather_evidence
from lorada.decision.run_variances import Common, Scores
from lorada.decision.statistics import ALPHA, LEVEL, by_group, letters, mean_score, most_unseen

NATS = "nats"


@dataclass(frozen=True)
class Interval:
    """A mean difference, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def turned(self) -> "Interval":
        """That of the same with the other sign."""
        return Interval(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Retention:
    """What a method gains, and what it loses elsewhere.

    Attributes:
        method: the candidate's label.
        gain: points, or what scores count, above the best score without training; None without one.
        lost: growth of the loss on the rows to keep, in nats a token; None if it is not measured.
        letter: of groups that do not lose significantly more or less than each other; empty without
            a test.
    """

    method: str
    gain: Interval | None = None
    lost: Interval | None = None
    letter: str = ""


@dataclass(frozen=True, eq=False)
class KeptTables:
    """The growth of losses on the rows to keep.

    Attributes:
        growth: candidate's label → runs × rows, the loss of the run less that of the base.
        seeds: of these runs.
        rows: how many rows there are.
        groups: of each row; None if rows have none.
        reason: why nothing is measured; empty if something is.
    """

    growth: dict[str, Scores] = field(default_factory=dict)
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rows: int = 0
    groups: Sequence[str] | None = None
    reason: str = ""


RowOfName = tuple[str, int]  # the name of rows to keep, and an index among them


@dataclass(frozen=True, eq=False)
class BaseLosses:
    """The losses of the base on the rows to keep, where it has any.

    Attributes:
        rows: those with something to score, which is so in the base and in all runs alike.
        losses: of these rows, in nats a token.
        groups: of these rows; None if rows have none.
        reason: why there are none; empty if there are.
    """

    rows: Sequence[RowOfName] = ()
    losses: Scores = field(default_factory=partial(np.empty, 0))
    groups: Sequence[str] | None = None
    reason: str = ""


def read_base(results: Results) -> BaseLosses:
    """The losses of the base, as far as they are there.

    Raises:
        ValueError: for a damaged file.
    """
    if not results.plan.kept.rows:
        return BaseLosses(reason=results.plan.kept.reason or "there are no rows to keep")
    stored = saved_losses(results.folder / KEPT)
    if stored is None:
        return BaseLosses(reason="the model as it is has not been scored on the rows to keep yet")
    rows: list[RowOfName] = []
    for name, losses in stored.losses.items():
        rows += [(name, index) for index, loss in enumerate(losses) if loss is not None]
    if not rows:
        return BaseLosses(reason=stored.reason or "no row to keep has anything to score")
    return BaseLosses(rows, _in_order(stored, rows), _groups(stored, rows))


def read_kept_tables(results: Results) -> KeptTables:
    """What the runs of a comparison have lost on the rows to keep, as far as it is there.

    Raises:
        ValueError: for a damaged file.
    """
    base = read_base(results)
    if base.reason:
        return KeptTables(reason=base.reason)
    growth, seeds = {}, {}
    for candidate in results.candidates:
        tables, own_seeds = [], []
        for run in candidate.runs:
            losses = _losses_of(results, run, base.rows)
            if losses is not None:
                tables.append(losses - base.losses)
                own_seeds.append(run.seed)
        if tables:
            growth[candidate.label] = np.array(tables)
            seeds[candidate.label] = tuple(own_seeds)
    reason = "" if growth else "no run has been scored on the rows to keep yet"
    return KeptTables(growth, seeds, len(base.rows), base.groups, reason)


def _in_order(losses: KeptLosses, rows: Sequence[RowOfName]) -> Scores:
    values = [losses.losses[name][index] for name, index in rows]
    return np.array(values, dtype=float)


def _losses_of(results: Results, run: ScoredRun, rows: Sequence[RowOfName]) -> Scores | None:
    """The losses of a run on these rows; None if any of them is missing or not finite."""
    stored = saved_losses(results.folder / run.folder)
    return None if stored is None else losses_on(stored, rows)


def losses_on(stored: KeptLosses, rows: Sequence[RowOfName]) -> Scores | None:
    """The same of losses that are read already."""
    for name, index in rows:
        losses = stored.losses.get(name, [])
        if index >= len(losses) or losses[index] is None:
            return None
    return _in_order(stored, rows)


def _groups(base: KeptLosses, rows: Sequence[RowOfName]) -> list[str] | None:
    """The group of each row, with its name, as two files may use one; None if rows have none."""
    if not base.groups:
        return None
    groups = []
    for name, index in rows:
        own_groups = base.groups.get(name)
        group = None if own_groups is None else own_groups[index]
        groups.append(f"{name} row {index}" if group is None else f"{name}: {group}")
    return groups


def retentions(
    candidates: Sequence[CandidateResult],
    tables: KeptTables,
    without_training: Scores | None,
    groups: Sequence[str] | None,
    *,
    share: bool,
) -> list[Retention]:
    """What each candidate gains and loses, in their order.

    Args:
        candidates: those with runs; scores are higher for the better one.
        tables: what they have lost.
        without_training: of each held-out row, the best score without training; None if there is
            none.
        groups: of each held-out row; None if rows have none.
        share: whether scores lie between 0 and 100.
    """
    gains = {}
    if without_training is not None:
        gains_by_row = {one.label: one.scores - without_training for one in candidates}
        gains = intervals_of(gains_by_row, groups, share=share)
    losses = intervals_of(tables.growth, tables.groups)
    letter_of = _letters(tables)
    return [
        Retention(
            one.label, gains.get(one.label), losses.get(one.label), letter_of.get(one.label, "")
        )
        for one in candidates
    ]


def intervals_of(
    differences: Mapping[str, Scores], groups: Sequence[str] | None, *, share: bool = False
) -> dict[str, Interval]:
    """The mean of runs × rows of each method with its interval; none of a single row or group.

    ``share`` says that they are differences of scores between 0 and 100. Where no row differs, as
    many of other rows may as could be missing here by luck.
    """
    if groups is not None:
        differences = {name: by_group(table, groups) for name, table in differences.items()}
    if not differences or min(table.shape[1] for table in differences.values()) < 2:
        return {}
    # Few runs may be alike by luck, so methods borrow how much runs vary from each other.
    common = Common.of(list(differences.values()))
    intervals = {}
    for name, table in differences.items():
        estimate = mean_score(table, common)
        low, high = estimate.interval()
        if share and not estimate.error:
            reach = 100 * most_unseen(table.shape[1], (1 - LEVEL) / 2)
            low, high = estimate.value - reach, estimate.value + reach
        intervals[name] = Interval(estimate.value, low, high)
    return intervals


def p_values_of_losses(tables: KeptTables) -> dict[frozenset[str], float]:
    """Of each pair of methods that of a difference in what they lose, corrected for all pairs.

    None of methods with a single run, and none at all where no difference could be shown.
    """
    if len(tables.growth) < 2:
        return {}
    evidence = gather_evidence(
        check_score_tables(tables.growth, {}, {}), costs={}, margin=None, lower_is_better=True,
        groups=tables.groups, seeds=tables.seeds, unit=NATS,
    )  # fmt: skip
    return evidence.corrected_p_values(evidence.tested)


def _letters(tables: KeptTables) -> dict[str, str]:
    """The letters of the methods that are tested, those that lose the least first."""
    p_values = p_values_of_losses(tables)
    tested = {name for pair in p_values for name in pair}
    least_first = sorted(tested, key=lambda name: float(tables.growth[name].mean()))
    different = {pair for pair, p in p_values.items() if p < ALPHA}
    return letters(least_first, different) if p_values else {}


def loses_more_than(tables: KeptTables) -> dict[str, list[str]]:
    """Method → those than which it loses significantly more, that with the largest loss first."""
    worse: dict[str, list[str]] = {}
    means = {name: float(table.mean()) for name, table in tables.growth.items()}
    for pair, p in p_values_of_losses(tables).items():
        less, more = sorted(pair, key=means.__getitem__)
        if p < ALPHA:
            worse.setdefault(more, []).append(less)
    return dict(sorted(worse.items(), key=lambda entry: -means[entry[0]]))
