"""Decides which method to take: the highest score, unless a cheaper one is shown to cost little."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from lorada.decision.check_scores import (
    check_costs,
    checked_number,
    group_places,
    one_row_error,
    refuse_transposed,
    score_tables,
    seed_orders,
)
from lorada.decision.decision_sentence import CHEAPER, COSTS, Costs, Decision, saved, sentence
from lorada.decision.expected_loss import Posterior, posterior
from lorada.decision.run_variances import TINY, Common, Scores
from lorada.decision.score_units import (
    PERCENT,
    UNKNOWN,
    ScoreUnit,
    default_margin,
    named_unit,
    refuse_mixed,
    right_or_wrong,
    unit_of,
    zoom_of,
)
from lorada.decision.statistics import (
    ALPHA,
    LEVEL,
    POWER,
    by_group,
    difference,
    holm,
    letters,
    mean_score,
    paired_p,
    rows_needed,
    seeds_correlate,
)
from lorada.support.error_messages import needs_extra
from lorada.support.in_words import counted

CONFIDENCE = 0.9  # that no cheaper method that may be taken costs more than the margin, one-sided
LEARNED = 0.05  # level of the one-sided tests of all runs against scores without training
PART = 0.25  # of the best method's gain: one that gains less may have learned nothing
MORE_RUNS = 3  # of each method: what these would save is foretold
MOST_ROWS = 100_000  # that are named as what would show that a method has learned


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

    A cheaper method is taken if the one-sided 90 % confidence bound of what it costs, corrected for
    the number of cheaper methods, is at most the margin. It is cheaper if it has a fifth less of
    the first of the costs (parameters, seconds, bytes) in which the two differ by so much. By the
    margin that is not given, no method is taken that is significantly worse.

    Args:
        scores: method → seeds × rows. All methods have the same rows; they may have different
            numbers of seeds. A run with no finite score has diverged.
        costs: method → trained ``parameters``, ``seconds`` of a step, ``bytes`` of memory: any.
        margin: how much a cheaper method may cost, in points of percent or the unit of other
            scores. If not given, it is a point of percent, or a fifth of the best method's errors
            if that is less; of losses 2 % of the lowest. Scores in another unit have none, so that
            no cheaper method is taken.
        lower_is_better: whether scores are losses or errors.
        groups: of each row, what it shares with others, such as the passage that several questions
            are about; if not given, rows are independent.
        baselines: name → score of each row without training, such as of the commonest answer.
        seeds: method → the seed of each run, in any order; if not given, runs in one place have
            one seed.
        unit: of the scores, ``%`` or any other. If not given, scores between 0 and 1 are shares,
            and what is returned is in percent; 0 and 100 are right and wrong in percent; the unit
            of all others is not known.

    Raises:
        ValueError: without scores, for fewer than two rows, rows that differ between methods or
            lack a score, shares of one beside percent, more runs than rows (without ``seeds``),
            unknown methods or costs, and a margin that is no number of at least 0.
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
    margin: float | None  # None where the unit of the scores has no default
    margin_is_own: bool  # whether the user has given it
    zoom: float  # a power of two by which all scores, and the margin, are multiplied
    unit: str
    sign: int  # -1 if scores are losses or errors
    right_or_wrong: bool  # whether all scores are 0 or 100
    rows: int  # that are scored, in groups or not

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean score of each method that has one."""
        return {name: float(table.mean()) for name, table in self.scores.items()}

    @cached_property
    def tested(self) -> list[str]:
        """The methods with enough runs for a test: two."""
        return [name for name, table in self.scores.items() if len(table) > 1]

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
    def fitted(self) -> list[str]:
        """The methods that the posterior is of; others say nothing of how these differ."""
        # In one order, so that draws, and with them the choice, do not depend on the order given.
        learned = sorted(name for name in self.means if name not in self.unlearned)
        return learned or sorted(self.means)

    @cached_property
    def posterior(self) -> Posterior | None:
        """What the true means of the fitted methods may be; None if none of them has two runs."""
        names = self.fitted
        tables = [self.scores[name] for name in names]
        if all(len(table) < 2 for table in tables):
            return None
        places = combinations(range(len(names)), 2)
        pairs = [(a, b) for a, b in places if self.by_seed(names[a], names[b])]
        return posterior(tables, pairs, MORE_RUNS)

    @cached_property
    def losses(self) -> dict[str, float]:
        """Expected losses; empty if no method has two runs."""
        if self.posterior is None:
            return {}
        means = self.means
        fitted = dict(zip(self.fitted, map(float, self.posterior.losses), strict=True))
        top = max(fitted, key=means.__getitem__)
        return {n: fitted.get(n, fitted[top] + means[top] - mean) for n, mean in means.items()}

    def highest(self, names: Collection[str]) -> str | None:
        """The method with the highest mean; of equal ones the cheapest."""
        top = max((self.means[name] for name in names), default=0.0)
        equal = [name for name in names if top - self.means[name] < TINY]
        return _cheapest(self.costs, self.means, equal) if equal else None

    @cached_property
    def leader(self) -> str | None:
        """The highest score, of equal ones the cheapest; of unequal runs, the least expected loss.

        Where methods have different numbers of runs the highest score is often luck of few.
        It is replaced by the highest within the margin without runs that diverged, if any of its
        runs did.
        """
        means = self.means
        learned = [name for name in means if name not in self.unlearned]
        leader = self.highest(learned)
        if leader is None:
            return None
        if self.losses and len({len(self.scores[name]) for name in learned}) > 1:
            leader = min(learned, key=self.losses.__getitem__)
        if leader not in self.diverged:
            return leader
        least = means[leader] - (self.margin or 0.0)
        steady = [n for n in learned if n not in self.diverged and means[n] >= least]
        return self.highest(steady) or leader

    def most_lost(self, leader: str) -> dict[str, float]:
        """What each cheaper method costs at most, with 90 % confidence for all of them together.

        The level is divided by their number: the more there are, the more likely one of them looks
        as good as the leader by luck.
        """
        if leader not in self.tested:
            return {}
        cheaper = [
            name
            for name in self.tested
            if name not in (*self.unlearned, *self.diverged) and saved(self.costs, name, leader)
        ]
        level = (1 - CONFIDENCE) / max(1, len(cheaper))
        unseen = self._unseen(level)
        bounds = {}
        for name in cheaper:
            by_seed = self.by_seed(leader, name)
            lost = difference(self.scores[leader], self.scores[name], self.common, by_seed=by_seed)
            bounds[name] = max(lost.interval(1 - 2 * level)[1], unseen)
        return bounds

    def _unseen(self, level: float) -> float:
        """The share of rows, in percent, on which two methods may differ though no row shows it.

        It is 0 where scores are not right or wrong.
        """
        independent = next(iter(self.scores.values())).shape[1]
        return 100 * (1 - level ** (1 / independent)) if self.right_or_wrong else 0.0

    def is_worse(self, name: str, leader: str) -> bool:
        """Whether a method is significantly worse than the leader, not corrected for others."""
        if self.means[leader] - self.means[name] < TINY:
            return False
        tables = self.scores[leader], self.scores[name]
        return paired_p(*tables, self.common, self.by_seed(leader, name)) < ALPHA

    def not_worse(self, bounds: Mapping[str, float], leader: str) -> list[str]:
        """The cheaper methods that are shown to cost no more than the margin.

        One that is significantly worse is among them only by a margin of the user's own.
        """
        if self.margin is None:
            return []
        within = [name for name, bound in bounds.items() if bound <= self.margin]
        if self.margin_is_own:
            return within
        return [name for name in within if not self.is_worse(name, leader)]

    @cached_property
    def is_share(self) -> bool:
        """Whether scores are a share of something, in percent, and not a change of it."""
        shown = [self.sign * table for table in self.scores.values()]
        lowest = min((float(table.min()) for table in shown), default=0.0)
        highest = max((float(table.mean()) for table in shown), default=0.0)
        return self.unit == PERCENT and lowest >= 0 and highest <= 100

    def rows_to_learn(self, name: str) -> int | None:
        """About how many rows would show that a method has learned, with 80 % power.

        None if it is no better than the best score without training, or by so little that this
        takes more rows than anybody has.
        """
        with needs_extra("compare"):
            from scipy.stats import norm

        best = max(self.baselines.values(), key=lambda scores: float(scores.mean()))
        gains = self.scores[name].mean(axis=0) - best
        if gains.mean() < TINY:
            return None
        level = LEARNED / 2  # of the test of its mean, as in ``_has_learned``
        level /= len(self.scores) if len(self.unlearned) == len(self.scores) else 1
        errors = float(norm.isf(level) + norm.isf(1 - POWER))
        independent = (errors * float(gains.std(ddof=1) / gains.mean())) ** 2
        needed = independent * self.rows / len(gains)
        return max(self.rows + 1, math.ceil(needed)) if needed <= MOST_ROWS else None


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
    if unit is not None and not isinstance(unit, str):
        raise ValueError(f"unit={unit!r}: give a text, such as %")
    unit = None if unit is None else named_unit(unit).name
    tables, fixed = score_tables(scores, baselines)
    refuse_transposed(tables, seeds)
    check_costs(costs, tables)
    runs_finished = {name: np.isfinite(table[:, 0]) for name, table in tables.items()}
    finished = {n: table[runs_finished[n]] for n, table in tables.items() if runs_finished[n].any()}
    refuse_mixed({**finished, **fixed}, unit, lower_is_better=lower_is_better)
    if unit is not None:
        scale = ScoreUnit(unit)
    elif lower_is_better:
        scale = UNKNOWN
    else:
        scale = unit_of(finished.values(), fixed.values())
    sign = -1 if lower_is_better else 1
    finished, fixed = (_each(one, lambda table: scale.factor * table) for one in (finished, fixed))
    zoom = zoom_of([*finished.values(), *fixed.values()]) if scale.name != PERCENT else 1.0
    finished, fixed = (_each(one, lambda table: zoom * table) for one in (finished, fixed))
    if margin is None:
        used = default_margin(finished.values(), scale.name, lower_is_better=lower_is_better)
    else:
        error = f"margin={margin} is no number of points: give 0 or more"
        used = zoom * checked_number(margin, error)
    exact = all(map(right_or_wrong, finished.values()))
    finished, fixed = (_each(one, lambda table: sign * table) for one in (finished, fixed))
    rows = next(iter(tables.values())).shape[1]
    independent = rows
    if groups is not None:
        places = group_places(groups, rows)
        finished, fixed = (_each(one, lambda t: by_group(t, places)) for one in (finished, fixed))
        independent = len(set(places))
    if independent < 2:
        raise ValueError(one_row_error(rows))
    order = seed_orders(seeds, runs_finished)
    return _Given(
        scores={name: table[order[name].places] for name, table in finished.items()},
        seeds={name: one.seeds for name, one in order.items()},
        baselines={name: one[0] for name, one in fixed.items()},
        runs={name: len(one) for name, one in runs_finished.items()},
        diverged={n: int((~one).sum()) for n, one in runs_finished.items() if not one.all()},
        costs=costs,
        margin=used,
        margin_is_own=margin is not None,
        zoom=zoom,
        unit=scale.name,
        sign=sign,
        right_or_wrong=exact,
        rows=rows,
    )


def _each(tables: Mapping[str, Scores], change: Callable[[Scores], Scores]) -> dict[str, Scores]:
    return {name: change(table) for name, table in tables.items()}


def _decided(given: _Given) -> Decision:
    means, leader = given.means, given.leader
    best_first = sorted(given.tested, key=means.__getitem__, reverse=True)
    bounds = given.most_lost(leader) if leader else {}
    not_worse = given.not_worse(bounds, leader) if leader else []
    pick = _cheapest(given.costs, means, [leader, *not_worse]) if leader else None
    ps = given.p_values(best_first)
    intervals = _intervals(given)
    shared = letters(best_first, {pair for pair, p in ps.items() if p < ALPHA})
    expected = _expected(given, pick, intervals)
    found = Decision(
        sentence="",
        pick=pick,
        expected_score=expected.score,
        expected_interval=expected.interval,
        p_best=expected.p_best,
        loss_after_more_runs=expected.loss_after_more_runs,
        highest=given.highest(means),
        leader=leader,
        scores={name: given.sign * mean + 0.0 for name, mean in means.items()},  # no -0
        intervals=intervals,
        expected_loss=given.losses,
        claimed_loss=_claimed_loss(given, pick, bounds),
        not_worse=tuple(not_worse),
        letters=dict.fromkeys(given.runs, "") | (shared if ps else {}),
        p_highest={n: ps[frozenset((n, best_first[0]))] for n in best_first[1:]} if ps else {},
        runs=given.runs,
        diverged=given.diverged,
        untested=tuple(name for name in means if name not in given.tested),
        unlearned=tuple(given.unlearned),
        rows_to_learn=_rows_to_learn(given),
        baselines={n: given.sign * float(one.mean()) for n, one in given.baselines.items()},
        costs=given.costs,
        margin=given.margin,
        no_letters=_no_letters(given) if not ps else "",
        unit=given.unit,
        lower_is_better=given.sign < 0,
    )
    found = _as_given(found, given.zoom)
    return replace(found, sentence=sentence(found))


def _as_given(found: Decision, zoom: float) -> Decision:
    """The decision in the unit of the scores as they were given; a power of two rounds nothing."""
    if zoom == 1:
        return found

    def given(value: float | None) -> float | None:
        return None if value is None else value / zoom

    interval = found.expected_interval
    return replace(
        found,
        scores={name: score / zoom for name, score in found.scores.items()},
        intervals={
            name: (low / zoom, high / zoom) for name, (low, high) in found.intervals.items()
        },
        expected_loss={name: loss / zoom for name, loss in found.expected_loss.items()},
        claimed_loss=given(found.claimed_loss),
        loss_after_more_runs=given(found.loss_after_more_runs),
        expected_score=given(found.expected_score),
        expected_interval=None if interval is None else (interval[0] / zoom, interval[1] / zoom),
        baselines={name: score / zoom for name, score in found.baselines.items()},
        margin=given(found.margin),
    )


def _limits(given: _Given) -> tuple[float, float]:
    """Between which values a mean score can be."""
    return (0.0, 100.0) if given.is_share else (-np.inf, np.inf)


def _intervals(given: _Given) -> dict[str, tuple[float, float]]:
    """The confidence interval of each method's mean score, as it is shown."""
    intervals = {}
    for name, table in given.scores.items():
        shown = mean_score(given.sign * table, given.common, given.is_share)
        low, high = np.clip(shown.interval(), *_limits(given))
        intervals[name] = float(low), float(high)
    return intervals


@dataclass(frozen=True)
class _Expected:
    """What is expected of the pick on new rows and seeds; see ``Decision``."""

    score: float | None = None
    interval: tuple[float, float] | None = None
    p_best: float | None = None
    loss_after_more_runs: float | None = None


def _expected(
    given: _Given, pick: str | None, intervals: Mapping[str, tuple[float, float]]
) -> _Expected:
    """What is expected of the pick; nothing without one, or if no method has two runs.

    ``intervals`` are those of the measured means, as they are shown.
    """
    if pick is None or given.posterior is None:
        return _Expected()
    place = given.fitted.index(pick)
    low, high = sorted(given.sign * end for end in given.posterior.interval(place, LEVEL))
    if high - low < TINY:  # all rows are right, or all wrong: the interval is that of a share
        low, high = intervals[pick]
    score = given.sign * float(given.posterior.means[:, place].mean())
    score, low, high = np.clip([score, low, high], *_limits(given))
    is_highest = pick == given.leader == given.highest(given.fitted)
    return _Expected(
        score=float(score),
        interval=(float(low), float(high)),
        p_best=float(given.posterior.best[place]),
        loss_after_more_runs=given.posterior.later_loss if is_highest else None,
    )


def _no_letters(given: _Given) -> str:
    """Why no two methods can be tested; empty if there is only one."""
    if len(given.scores) < 2:
        return ""
    count = len(given.tested)
    if count < 2:
        return "No two methods have the runs that a test takes."
    independent = next(iter(given.scores.values())).shape[1]
    what = "row" if independent == given.rows else "group"
    needed = rows_needed(count * (count - 1) // 2)
    return (
        f"With {counted(independent, what)} no difference can be significant: it takes {needed} "
        f"{what}s or more."
    )


def _rows_to_learn(given: _Given) -> dict[str, int]:
    """About how many rows would show that a method has learned, of those that are not shown to."""
    needed = {name: given.rows_to_learn(name) for name in given.unlearned}
    return {name: rows for name, rows in needed.items() if rows is not None}


def _claimed_loss(given: _Given, pick: str | None, bounds: Mapping[str, float]) -> float | None:
    """What is said of the pick: its expected loss, or its bound if it is taken by that."""
    if pick is None or pick not in given.losses:
        return None
    if pick == given.leader:
        return given.losses[pick]
    return max(given.losses[pick], bounds[pick])


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
