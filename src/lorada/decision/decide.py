"""Decides which method to take: the highest score, unless a cheaper one is shown to cost little."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from lorada.decision.check_scores import check_score_tables
from lorada.decision.costs import Costs, cheapest, saving
from lorada.decision.decision_record import Decision
from lorada.decision.decision_sentence import decision_sentence
from lorada.decision.evidence import Evidence
from lorada.decision.gain import Gain, gain_of
from lorada.decision.gather_evidence import gather_evidence
from lorada.decision.run_variances import TINY, Scores
from lorada.decision.statistics import (
    ALPHA,
    LEVEL,
    difference,
    letters,
    mean_score,
    most_unseen,
    rows_needed,
)
from lorada.support.in_words import counted

CONFIDENCE = 0.9  # that no cheaper method that may be taken costs more than the margin, one-sided


def decide(
    scores: Mapping[str, ArrayLike],
    costs: Costs | None = None,
    margin: float | None = None,
    *,
    lower_is_better: bool = False,
    groups: Sequence[object] | None = None,
    baselines: Mapping[str, ArrayLike] | None = None,
    alternatives: Mapping[str, ArrayLike] | None = None,
    seeds: Mapping[str, Sequence[object]] | None = None,
    unit: str | None = None,
) -> Decision:
    """Decide which method to take: the highest score, unless a cheaper one is shown to cost little.

    A cheaper method is taken if the one-sided 90 % confidence bound of what it costs, corrected for
    the number of cheaper methods, is at most the margin. It is cheaper if it has a fifth less of
    the first of the costs (parameters, seconds, bytes) in which the two differ by so much. By the
    default margin, no method is taken that is significantly worse. Where methods have different
    numbers of runs, the least expected loss leads in place of the highest score. A method that is
    not shown to have learned more than the baselines is never taken.

    Args:
        scores: method → seeds × rows. All methods have the same rows; they may have different
            numbers of seeds. A run with no finite score has diverged: means leave it out, and a
            method with such runs is taken only if it leads and no other is within the margin.
        costs: method → trained ``parameters``, ``seconds`` of a step, ``bytes`` of memory; any of
            them may be missing.
        margin: how much a cheaper method may cost, in points of percent or the unit of other
            scores. If not given, it is a point of percent, or a fifth of the best method's errors
            if that is less; of losses 2 % of the lowest. Scores in another unit have none, so that
            no cheaper method is taken.
        lower_is_better: whether scores are losses or errors.
        groups: of each row, what it shares with others, such as the passage that several questions
            are about; if not given, rows are independent.
        baselines: name → score of each row of what has learned nothing, such as the commonest
            answer. Of what was drawn several times, such as examples in a prompt: draws × rows.
        alternatives: the same of what may be taken instead of a training, such as examples in the
            prompt or another model. What a training gains is its score above the best of both; a
            method may have learned without being better than these.
        seeds: method → the seed of each run, in any order; if not given, run i of every method
            has the same seed.
        unit: of the scores, ``%`` or any other. If not given, scores between 0 and 1 are shares,
            and what is returned is in percent; 0 and 100 are right and wrong in percent; the unit
            of all others is not known.

    Raises:
        ValueError: without scores, for fewer than two rows, rows that differ between methods or
            lack a score, scores from 0 to 1 mixed with scores in percent, more runs than rows
            (without ``seeds``), unknown methods or costs, and a margin that is no number of at
            least 0.
        ImportError: if scipy, of the extra ``compare``, is missing.
    """
    tables = check_score_tables(scores, baselines or {}, alternatives or {})
    evidence = gather_evidence(
        tables, costs or {}, margin, lower_is_better, groups, seeds or {}, unit
    )
    choice = _choose(evidence)
    decision = _describe(evidence, choice)
    # The sentence is written from all that is decided, so it comes last.
    return replace(decision, sentence=decision_sentence(decision))


@dataclass(frozen=True)
class _Choice:
    """Which method is taken, and by what."""

    pick: str | None = None
    leader: str | None = None  # the method that the rule starts from
    most_lost: Mapping[str, float] | None = None  # what each cheaper method costs at most
    not_worse: Sequence[str] = ()  # those of them that may be taken

    def claimed_loss(self, expected_losses: Mapping[str, float]) -> float | None:
        """What is said that the pick loses; None if nothing is expected, or without a pick.

        It is the expected loss. Of a pick that is taken because it is cheaper, it is the bound of
        what it costs if that is more.
        """
        if self.pick is None or self.pick not in expected_losses:
            return None
        expected_loss = expected_losses[self.pick]
        if self.pick == self.leader or self.most_lost is None:
            return expected_loss
        return max(expected_loss, self.most_lost[self.pick])


def _choose(evidence: Evidence) -> _Choice:
    """Choose the leader, or the cheapest of it and the methods that are shown to be not worse.

    Without a method that has learned, nothing is chosen.
    """
    leader = _leader(evidence)
    if leader is None:
        return _Choice()
    most_lost = _most_lost(evidence, leader)
    not_worse = _not_worse(evidence, most_lost, leader)
    pick = cheapest(evidence.costs, evidence.means, [leader, *not_worse])
    return _Choice(pick, leader, most_lost, not_worse)


def _leader(evidence: Evidence) -> str | None:
    """The method that the rule starts from; None if none has learned.

    It is the highest score, and of equal ones the cheapest. Where methods have different numbers
    of runs it is the least expected loss, as the highest score is often luck of few. If any of its
    runs diverged, the highest one within the margin of which none did takes its place.
    """
    means = evidence.means
    learned = [name for name in means if name not in evidence.unlearned]
    leader = evidence.highest(learned)
    if leader is None:
        return None
    numbers_of_runs = {len(evidence.scores[name]) for name in learned}
    if evidence.expected_losses and len(numbers_of_runs) > 1:
        leader = min(learned, key=evidence.expected_losses.__getitem__)
    if leader not in evidence.diverged:
        return leader
    least = means[leader] - (evidence.margin or 0.0)
    never_diverged = [name for name in learned if name not in evidence.diverged]
    steady = [name for name in never_diverged if means[name] >= least]
    return evidence.highest(steady) or leader


def _most_lost(evidence: Evidence, leader: str) -> dict[str, float]:
    """What each cheaper method costs at most, with 90 % confidence for all of them together.

    Methods that have not learned, that diverged, or that have one run are not among them; nor is
    any if the leader has one run. The level is divided by their number: the more there are, the
    more likely one of them looks as good as the leader by luck.
    """
    if leader not in evidence.tested:
        return {}
    left_out = (*evidence.unlearned, *evidence.diverged)
    cheaper = []
    for name in evidence.tested:
        if name not in left_out and saving(evidence.costs, name, leader):
            cheaper.append(name)
    level = (1 - CONFIDENCE) / max(1, len(cheaper))
    # Two methods may differ on rows of which none is among those that are scored. Where scores are
    # right or wrong, the number of rows says how many of such rows there may be at most.
    unseen = 0.0
    if evidence.right_or_wrong:
        unseen = 100 * most_unseen(evidence.independent_rows, level)
    bounds = {}
    for name in cheaper:
        lost = difference(
            evidence.scores[leader], evidence.scores[name], evidence.common,
            by_seed=evidence.are_paired_by_seed(leader, name),
        )  # fmt: skip
        # The upper end of this interval is the one-sided bound.
        _, upper = lost.interval(1 - 2 * level)
        bounds[name] = max(upper, unseen)
    return bounds


def _not_worse(evidence: Evidence, most_lost: Mapping[str, float], leader: str) -> list[str]:
    """The cheaper methods that are shown to cost no more than the margin.

    One that is significantly worse is among them only by a margin of the user's own.
    """
    if evidence.margin is None:
        return []
    within_margin = [name for name, most in most_lost.items() if most <= evidence.margin]
    if evidence.margin_is_own:
        return within_margin
    return [name for name in within_margin if not _is_significantly_worse(evidence, name, leader)]


def _is_significantly_worse(evidence: Evidence, name: str, leader: str) -> bool:
    """Whether a method is below the leader by a test that is not corrected for others."""
    if evidence.means[leader] - evidence.means[name] < TINY:
        return False
    return evidence.p_value(leader, name) < ALPHA


def _describe(evidence: Evidence, choice: _Choice) -> Decision:
    """Put the choice and what is known of each method into a decision, without its sentence.

    Here scores are turned back and get their own size again: a decision holds what users see.
    """
    scale, means, losses = evidence.scale, evidence.means, evidence.expected_losses
    best_first = sorted(evidence.tested, key=means.__getitem__, reverse=True)
    p_values = evidence.corrected_p_values(best_first)
    intervals = _shown_intervals(evidence)
    expected = _expected(evidence, choice, intervals)
    claimed_loss = choice.claimed_loss(losses)
    highest = evidence.highest(means)
    return Decision(
        sentence="",
        pick=choice.pick,
        expected_score=expected.score,
        expected_interval=expected.interval,
        p_best=expected.p_best,
        loss_after_more_runs=expected.loss_after_more_runs,
        highest=highest,
        leader=choice.leader,
        scores={name: scale.score(mean) for name, mean in means.items()},
        intervals=intervals,
        expected_loss={name: scale.difference(loss) for name, loss in losses.items()},
        claimed_loss=None if claimed_loss is None else scale.difference(claimed_loss),
        not_worse=tuple(choice.not_worse),
        letters=_letters(evidence, best_first, p_values),
        p_highest=_p_against_first(best_first, p_values),
        runs=evidence.runs,
        diverged=evidence.diverged,
        untested=tuple(name for name in means if name not in evidence.tested),
        unlearned=tuple(evidence.unlearned),
        rows_to_learn=_rows_to_learn(evidence),
        baselines=_shown_means(evidence, evidence.baselines),
        alternatives=_shown_means(evidence, evidence.alternatives),
        gain=_gain(evidence, choice.pick or highest),
        costs=evidence.costs,
        margin=None if evidence.margin is None else scale.difference(evidence.margin),
        no_letters="" if p_values else _why_no_letters(evidence),
        unit=scale.unit,
        lower_is_better=scale.lower_is_better,
    )


def _shown_means(evidence: Evidence, tables: Mapping[str, Scores]) -> dict[str, float]:
    """The mean of each table, as it is shown."""
    return {name: evidence.scale.score(float(table.mean())) for name, table in tables.items()}


def _gain(evidence: Evidence, method: str | None) -> Gain | None:
    """What a method gains over the best score without training."""
    if method is None:
        return None
    posterior, flattery = evidence.posterior, 0.0
    if posterior is not None and method in evidence.fitted:
        place = evidence.fitted.index(method)
        flattery = evidence.means[method] - float(posterior.means[:, place].mean())
    return gain_of(evidence, method, flattery)


def _letters(
    evidence: Evidence, best_first: Sequence[str], p_values: Mapping[frozenset[str], float]
) -> dict[str, str]:
    """The letters of each method: two methods that differ significantly have none in common.

    A method that is not tested has an empty text.
    """
    empty_letters = dict.fromkeys(evidence.runs, "")
    if not p_values:
        return empty_letters
    different = {pair for pair, p in p_values.items() if p < ALPHA}
    return empty_letters | letters(best_first, different)


def _p_against_first(
    best_first: Sequence[str], p_values: Mapping[frozenset[str], float]
) -> dict[str, float]:
    """Method → the p-value of its difference from the first one, without that one itself."""
    if not p_values:
        return {}
    best, *others = best_first
    return {name: p_values[frozenset((name, best))] for name in others}


def _shown_intervals(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """The confidence interval of each method's mean score, as it is shown."""
    intervals = {}
    for name, table in evidence.scores.items():
        # Where all rows are right, or all wrong, the interval is one of a share. That is seen only
        # in scores whose direction is that of users.
        shown_table = evidence.scale.sign * table
        interval = mean_score(shown_table, evidence.common, evidence.is_share).interval()
        low, high = _within_limits(evidence, interval)
        intervals[name] = low / evidence.scale.zoom, high / evidence.scale.zoom
    return intervals


def _within_limits(evidence: Evidence, values: Sequence[float]) -> list[float]:
    """Values cut to between 0 and 100 where scores are shares in percent; others as they are."""
    if not evidence.is_share:
        return [float(value) for value in values]
    return [float(value) for value in np.clip(values, 0.0, 100.0)]


@dataclass(frozen=True)
class _Expected:
    """What is expected of the pick on new rows and seeds; see ``Decision``."""

    score: float | None = None
    interval: tuple[float, float] | None = None
    p_best: float | None = None
    loss_after_more_runs: float | None = None


def _expected(
    evidence: Evidence, choice: _Choice, intervals: Mapping[str, tuple[float, float]]
) -> _Expected:
    """What is expected of the pick, as it is shown; nothing without one, or of one run each.

    Args:
        evidence: what the choice was made from.
        choice: with the pick.
        intervals: of the measured means, as they are shown.
    """
    posterior, scale = evidence.posterior, evidence.scale
    if choice.pick is None or posterior is None:
        return _Expected()
    # Draws of the posterior have a column for each fitted method.
    place = evidence.fitted.index(choice.pick)
    mean = scale.sign * float(posterior.means[:, place].mean())
    # A sign that is turned makes the lower end the upper one.
    low, high = sorted(scale.sign * end for end in posterior.interval(place, LEVEL))
    has_no_width = high - low < TINY
    score, low, high = _within_limits(evidence, [mean, low, high])
    interval = low / scale.zoom, high / scale.zoom
    if has_no_width:  # all rows are right, or all wrong: that of a share
        interval = intervals[choice.pick]
    # What more runs would save is foretold for whoever takes the highest score after them.
    later_loss = None
    if choice.pick == choice.leader == evidence.highest(evidence.fitted):
        later_loss = scale.difference(posterior.later_loss)
    return _Expected(score / scale.zoom, interval, float(posterior.best[place]), later_loss)


def _why_no_letters(evidence: Evidence) -> str:
    """A sentence on why nothing can be tested: one run each, or few rows; empty of one method."""
    if len(evidence.scores) < 2:
        return ""
    tested = len(evidence.tested)
    if tested < 2:
        return "No two methods have the runs that a test takes."
    independent = evidence.independent_rows
    what = "row" if independent == evidence.row_count else "group"
    pairs = tested * (tested - 1) // 2
    needed = rows_needed(pairs)
    return (
        f"With {counted(independent, what)} no difference can be significant: it takes {needed} "
        f"{what}s or more."
    )


def _rows_to_learn(evidence: Evidence) -> dict[str, int]:
    """About how many rows would show that a method has learned, of those that are not shown to."""
    rows_to_learn = {}
    for name in evidence.unlearned:
        row_count = evidence.rows_to_learn(name)
        if row_count is not None:
            rows_to_learn[name] = row_count
    return rows_to_learn
