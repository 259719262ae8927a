"""Decides which method to take: the highest score, unless a cheaper one is shown to cost little."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from lorada.compare.decision_in_words import CHEAPER, COSTS, Costs, Decision, saved, sentence
from lorada.compare.expected_loss import expected_losses
from lorada.compare.statistics import (
    ALPHA,
    TINY,
    Common,
    Scores,
    by_group,
    difference,
    holm,
    letters,
    mean_score,
    paired_p,
    rows_needed,
    seeds_correlate,
)
from lorada.support.error_messages import unknown_name

MARGIN = 1.0  # points that a cheaper method may cost
LOSS_MARGIN = 0.02  # of the lowest loss: the same for losses
CONFIDENCE = 0.9  # that a cheaper method costs no more than the margin, one-sided
LEARNED = 0.05  # level of the one-sided tests of all runs against scores without training
PART = 0.25  # of the best method's gain: one that gains less may have learned nothing
FEW = 3  # runs that a test takes beside methods with more


def decide(
    scores: Mapping[str, ArrayLike],
    costs: Costs | None = None,
    margin: float | None = None,
    *,
    lower_is_better: bool = False,
    groups: Sequence[object] | None = None,
    baselines: Mapping[str, ArrayLike] | None = None,
    seeds: Mapping[str, Sequence[object]] | None = None,
    unit: str | None = None,
) -> Decision:
    """Decide which method to take: the highest score, unless a cheaper one is shown to cost little.

    A cheaper method is taken if the one-sided 90 % confidence bound of what it costs is at most the
    margin. It is cheaper if it has a fifth less of the first of the costs (parameters, seconds,
    bytes) in which the two differ by so much.

    Args:
        scores: method → seeds × rows. All methods have the same rows; they may have different
            numbers of seeds. A run with no finite score has diverged. Scores are in percent; where
            all are between 0 and 1 and no unit is given they are shares, and what is returned is in
            percent.
        costs: method → trained ``parameters``, ``seconds`` of a step, ``bytes`` of memory: any.
        margin: how much a cheaper method may cost, in points of percent or the unit of other
            scores; if not given 1, and for losses 2 % of the lowest.
        lower_is_better: whether scores are losses or errors.
        groups: of each row, what it shares with others, such as the passage that several questions
            are about; if not given, rows are independent.
        baselines: name → score of each row without training, such as of the commonest answer.
        seeds: method → the seed of each run; if not given, runs in one place have one seed.
        unit: of the scores, in the sentence.

    Raises:
        ValueError: without scores, for fewer than two rows, rows that differ between methods or
            lack a score, unknown methods or costs, and a margin that is no number of at least 0.
        ImportError: if scipy, of the extra ``compare``, is missing.
    """
    given = _checked(
        scores, costs or {}, margin, lower_is_better, groups, baselines or {}, seeds or {}, unit
    )
    return _decided(given)


@dataclass(frozen=True)
class _Given:
    """What a decision is made from, by the name of the method; higher scores are better."""

    scores: dict[str, Scores]  # seeds × rows (or groups of rows) of the runs that did not diverge
    seeds: dict[str, tuple[object, ...]]  # of these runs
    baselines: dict[str, Scores]  # name → score of each row (or group) without training
    runs: dict[str, int]  # those that diverged too
    diverged: dict[str, int]  # if any did
    costs: Costs
    margin: float
    unit: str
    sign: int  # -1 if scores are losses or errors
    # The share of rows, in percent, on which two methods may differ though none of these rows
    # shows it; 0 where scores are not right or wrong.
    unseen: float

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean score of each method that has one."""
        return {name: float(table.mean()) for name, table in self.scores.items()}

    @cached_property
    def tested(self) -> list[str]:
        """The methods with enough runs for a test: two, or beside methods with more three.

        The error of two runs beside more would be known too badly: 11 % instead of 5 % are false.
        """
        least = max(2, min(FEW, max(map(len, self.scores.values()), default=0)))
        return [name for name, table in self.scores.items() if len(table) >= least]

    @cached_property
    def common(self) -> Common | None:
        """How the runs of all methods that are tested vary."""
        return Common.of([self.scores[name] for name in self.tested])

    def by_seed(self, one: str, other: str) -> bool:
        """Whether two methods are compared seed by seed: one is the other and more: ``lora+lmam``.

        Their runs with one seed start alike, and are pairs if they also end alike. Settings or a
        budget may stand behind the names.
        """
        parts = [set(name.split(" ")[0].split(":")[0].split("+")) for name in (one, other)]
        if not (parts[0] < parts[1] or parts[1] < parts[0]) or self.seeds[one] != self.seeds[other]:
            return False
        return seeds_correlate(self.scores[one], self.scores[other])

    def p_values(self, names: Sequence[str]) -> dict[frozenset[str], float]:
        """Of each pair, corrected by Holm's method; none where no difference could be shown."""
        pairs = list(combinations(names, 2))
        if not pairs or self.scores[names[0]].shape[1] < rows_needed(len(pairs)):
            return {}
        ps = [
            paired_p(self.scores[a], self.scores[b], self.common, self.by_seed(a, b))
            for a, b in pairs
        ]
        return dict(zip(map(frozenset, pairs), holm(ps), strict=True))

    @cached_property
    def unlearned(self) -> list[str]:
        """The methods that have not learned; all, if that some did may be luck among so many.

        Few rows show hardly any method to be above the commonest answer. So one that is not shown
        to be has not learned only if it gains a small part of what the best gains.
        """
        names, fixed = list(self.scores), [float(one.mean()) for one in self.baselines.values()]
        level = LEARNED / max(1, len(names))
        if fixed and not any(self._has_learned(name, level) for name in names):
            return names
        gains = {name: mean - max(fixed, default=0.0) for name, mean in self.means.items()}
        least = PART * max(gains.values(), default=0.0)
        return [n for n in names if gains[n] < least and not self._has_learned(n, LEARNED)]

    def _has_learned(self, name: str, level: float) -> bool:
        """Whether any run of a method, or their mean, is above all scores without training.

        The tests are over rows: runs that differ much are no sign that nothing was learned. They
        are corrected for the number of runs (Bonferroni).
        """
        for baseline in self.baselines.values():
            gains = self.scores[name] - baseline
            each = level / 2 / len(gains)
            trials = [(gains.mean(axis=0), level / 2), *((gain, each) for gain in gains)]
            if not any(mean_score(one[None]).interval(1 - 2 * side)[0] > 0 for one, side in trials):
                return False
        return True

    @cached_property
    def losses(self) -> dict[str, float]:
        """Expected losses; what has not learned says nothing of how others differ."""
        means = self.means
        fitted = [name for name in means if name not in self.unlearned] or list(means)
        tables = [self.scores[name] for name in fitted]
        if all(len(table) < 2 for table in tables):
            return {}
        places = combinations(range(len(fitted)), 2)
        pairs = [(a, b) for a, b in places if self.by_seed(fitted[a], fitted[b])]
        found = dict(zip(fitted, map(float, expected_losses(tables, pairs)), strict=True))
        top = max(fitted, key=means.__getitem__)
        return {n: found.get(n, found[top] + means[top] - mean) for n, mean in means.items()}

    def highest(self, names: Collection[str]) -> str | None:
        """The method with the highest mean; of equal ones the cheapest."""
        top = max((self.means[name] for name in names), default=0.0)
        equal = [name for name in names if top - self.means[name] < TINY]
        return _cheapest(self.costs, self.means, equal) if equal else None

    @cached_property
    def leader(self) -> str | None:
        """The highest score, of equal ones the cheapest; of few runs, the least expected loss.

        The highest of few runs may be luck.
        It is replaced by the highest within the margin without runs that diverged, if any of its
        runs did.
        """
        means = self.means
        learned = [name for name in means if name not in self.unlearned]
        leader = self.highest(learned)
        if leader is None:
            return None
        if leader not in self.tested and self.losses:
            leader = min(learned, key=self.losses.__getitem__)
        if leader not in self.diverged:
            return leader
        least = means[leader] - self.margin
        steady = [n for n in learned if n not in self.diverged and means[n] >= least]
        return self.highest(steady) or leader

    def costs_little(self, name: str, leader: str) -> bool:
        """Whether a method is cheaper, and shown to be not worse than the leader by the margin."""
        if leader not in self.tested or name in self.unlearned or name in self.diverged:
            return False
        if not saved(self.costs, name, leader):
            return False
        by_seed = self.by_seed(leader, name)
        lost = difference(self.scores[leader], self.scores[name], self.common, by_seed=by_seed)
        return max(lost.interval(2 * CONFIDENCE - 1)[1], self.unseen) <= self.margin


def _checked(
    scores: Mapping[str, ArrayLike],
    costs: Costs,
    margin: float | None,
    lower_is_better: bool,
    groups: Sequence[object] | None,
    baselines: Mapping[str, ArrayLike],
    seeds: Mapping[str, Sequence[object]],
    unit: str | None,
) -> _Given:
    """What is given, in one form; see ``decide``."""
    tables, fixed = _tables(scores, baselines)
    _check_costs(costs, tables)
    whole = {name: np.isfinite(table[:, 0]) for name, table in tables.items()}
    finished = {name: table[whole[name]] for name, table in tables.items() if whole[name].any()}
    scale = 1.0
    if unit is None:
        unit, scale = ("", 1.0) if lower_is_better else _percent([*finished.values()])
    sign = -1 if lower_is_better else 1
    finished, fixed = (_each(one, lambda table: sign * scale * table) for one in (finished, fixed))
    right_or_wrong = all(np.isin(table, (0.0, 100.0)).all() for table in finished.values())
    rows = next(iter(tables.values())).shape[1]
    if groups is not None:
        if len(groups) != rows:
            raise ValueError(f"{len(groups)} groups for {rows} rows: give the group of each row")
        finished, fixed = (_each(one, lambda t: by_group(t, groups)) for one in (finished, fixed))
        rows = len(set(groups))
    if rows < 2:
        raise ValueError(f"{rows} independent row of scores: a test needs two or more")
    if margin is None:
        best = max((float(table.mean()) for table in finished.values()), default=0.0)
        margin = LOSS_MARGIN * abs(best) if lower_is_better else MARGIN
    if not 0 <= margin < np.inf:
        raise ValueError(f"margin={margin} is no number of points: give 0 or more")
    return _Given(
        scores=finished,
        seeds=_seeds(seeds, whole),
        baselines={name: one[0] for name, one in fixed.items()},
        runs={name: len(one) for name, one in whole.items()},
        diverged={name: int((~one).sum()) for name, one in whole.items() if not one.all()},
        costs=costs,
        margin=float(margin),
        unit=unit,
        sign=sign,
        unseen=100 * (1 - (1 - CONFIDENCE) ** (1 / rows)) if right_or_wrong else 0.0,
    )


def _each(tables: Mapping[str, Scores], change: Callable[[Scores], Scores]) -> dict[str, Scores]:
    return {name: change(table) for name, table in tables.items()}


def _tables(
    scores: Mapping[str, ArrayLike], baselines: Mapping[str, ArrayLike]
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Methods and baselines as arrays of runs × rows, all with as many rows."""
    if not scores:
        raise ValueError("no scores are given: nothing can be decided")
    tables = {name: _numbers(name, one) for name, one in scores.items()}
    fixed = {name: _numbers(name, one)[None] for name, one in baselines.items()}
    first, rows = next((name, table.shape[-1:]) for name, table in tables.items())
    for name, table in [*tables.items(), *fixed.items()]:
        if table.ndim != 2 or not table.size:
            raise ValueError(f"{name}: scores have the shape {table.shape}, not seeds × rows")
        if table.shape[1:] != rows:
            raise ValueError(
                f"{name} has {table.shape[1]} rows and {first} has {rows[0]}: "
                "methods are compared on the same rows"
            )
        finite = np.isfinite(table)
        for run, row in np.argwhere(~finite):
            if finite[run].any() or name in fixed:
                raise ValueError(
                    f"{name}, run {run + 1}: row {row + 1} has no score. Give each run a score of "
                    "all rows, or of none if it diverged"
                )
    return tables, fixed


def _numbers(name: str, scores: ArrayLike) -> Scores:
    try:
        return np.asarray(scores, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: scores are no table of numbers, seeds × rows") from error


def _percent(tables: Sequence[Scores]) -> tuple[str, float]:
    """The unit of scores, and what makes percent of them: shares and percent are told by range."""
    low = min((table.min() for table in tables), default=0.0)
    high = max((table.max() for table in tables), default=100.0)
    return ("", 1.0) if low < 0 or high > 100 else ("%", 100.0 if high <= 1 else 1.0)


def _seeds(
    given: Mapping[str, Sequence[object]], whole: Mapping[str, Scores]
) -> dict[str, tuple[object, ...]]:
    """The seeds of the runs that did not diverge; their places where none are given."""
    found = {}
    for name, finished in whole.items():
        seeds = tuple(given.get(name, range(len(finished))))
        if len(set(seeds)) != len(finished):
            raise ValueError(f"{name} has {len(finished)} runs, but the seeds {list(seeds)}")
        found[name] = tuple(seed for seed, keep in zip(seeds, finished, strict=True) if keep)
    return found


def _check_costs(given: Costs, methods: Mapping[str, Scores]) -> None:
    for name, costs in given.items():
        if name not in methods:
            raise unknown_name("method in the costs", name, methods)
        for kind, value in costs.items():
            if kind not in COSTS:
                raise unknown_name(f"cost of {name}", kind, COSTS)
            if not isinstance(value, Real) or not 0 <= float(value) < np.inf:
                raise ValueError(f"{kind} of {name} is {value!r}: give a number of at least 0")


def _decided(given: _Given) -> Decision:
    means, leader = given.means, given.leader
    best_first = sorted(given.tested, key=means.__getitem__, reverse=True)
    not_worse = [name for name in given.tested if leader and given.costs_little(name, leader)]
    ps = given.p_values(best_first)
    share = given.unit == "%"
    limits = (0.0, 100.0) if share else (-np.inf, np.inf)
    intervals = {}
    for name, table in given.scores.items():
        ends = sorted(given.sign * end for end in mean_score(table, given.common, share).interval())
        low, high = np.clip(ends, *limits)
        intervals[name] = float(low), float(high)
    found = Decision(
        sentence="",
        pick=_cheapest(given.costs, means, [leader, *not_worse]) if leader else None,
        highest=given.highest(means),
        leader=leader,
        scores={name: given.sign * mean + 0.0 for name, mean in means.items()},  # no -0
        intervals=intervals,
        expected_loss=given.losses,
        not_worse=tuple(not_worse),
        letters=letters(best_first, {pair for pair, p in ps.items() if p < ALPHA}) if ps else {},
        p_highest={n: ps[frozenset((n, best_first[0]))] for n in best_first[1:]} if ps else {},
        runs=given.runs,
        diverged=given.diverged,
        untested=tuple(name for name in means if name not in given.tested),
        unlearned=tuple(given.unlearned),
        baselines={n: given.sign * float(one.mean()) for n, one in given.baselines.items()},
        costs=given.costs,
        margin=given.margin,
        unit=given.unit,
        lower_is_better=given.sign < 0,
    )
    return replace(found, sentence=sentence(found))


def _cheapest(costs: Costs, means: Mapping[str, float], names: Sequence[str]) -> str:
    """The cheapest method; of those that are as cheap, the one with the highest score."""
    left = list(names)
    for kind in COSTS:
        known = [costs.get(name, {}).get(kind) for name in left]
        least = min((one for one in known if one is not None), default=None)
        if least is not None and None not in known:
            left = [
                n for n, one in zip(left, known, strict=True) if CHEAPER * (one or 0.0) <= least
            ]
    return max(left, key=means.__getitem__)
