"""What the seeds of one method answer together: a vote, its interval and its price.

Classes and short answers are decided by the majority, and where it is open by the first of the runs
that gave one of the commonest answers. Where the probability of both of two classes follows from
what is stored, the mean probability decides; numbers are averaged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorada.compare.held_out_rows import AskedRow
from lorada.compare.read_results import CandidateResult, RowKey
from lorada.compare.row_findings import answer_texts, right_or_wrong
from lorada.data.scoring.metrics import set_f1, set_match
from lorada.decision.run_variances import Scores
from lorada.decision.statistics import by_group, mean_score
from lorada.support.majority import majority
from lorada.support.metric_names import ERROR, FREE, LOSS, as_score, rows_metric
from lorada.support.row_sources import Form

MAJORITY, PROBABILITY, MEAN = "majority", "mean probability", "mean"


@dataclass(frozen=True)
class Vote:
    """What the runs of a method score together; higher is better, as of all scores.

    Attributes:
        method: the candidate's label.
        by: how they decide: ``majority``, ``mean probability`` or ``mean``.
        runs: how many vote. An answer takes so many times as long.
        alone: the mean score of a single run.
        score: that of the vote.
        low: lower end of the 95 % interval of what these runs score together on other rows.
        high: its upper end.
        gain: of the vote over a single run, on average.
        gain_low: lower end of the 95 % interval of what these runs gain on other rows.
        gain_high: its upper end.
    """

    method: str
    by: str
    runs: int
    alone: float
    score: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class VoteScores:
    """The score of each row by a vote, and how it was decided."""

    by: str
    row_scores: Scores  # higher is better


def votes(
    candidates: Sequence[CandidateResult],
    keys: Sequence[RowKey],
    rows: Sequence[AskedRow],
    metric: str,
    groups: Sequence[str] | None = None,
    *,
    share: bool = False,
) -> list[Vote]:
    """Let the runs of each candidate vote, if it has two or more; none where runs cannot vote.

    Args:
        candidates: the candidates.
        keys: the held-out rows, in the order of the columns of all scores.
        rows: the same with their right answers.
        metric: what candidates are compared by.
        groups: of each row; None if rows have none.
        share: whether scores lie between 0 and 100.
    """
    all_votes = []
    for candidate in candidates:
        if len(candidate.runs) < 2 or len(keys) < 2:
            continue
        vote = vote_scores(candidate, keys, rows, rows_metric(metric))
        if vote is not None:
            all_votes.append(vote_of(candidate.label, vote, candidate.scores, groups, share=share))
    return all_votes


def vote_scores(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], metric: str
) -> VoteScores | None:
    """Let a candidate's runs vote on each row, and score what they answer together.

    Numbers are averaged, each of several labels is decided by the majority, two classes by the mean
    probability if it is known, and other answers by the majority.

    Args:
        candidate: whose runs vote.
        keys: the held-out rows, in the order of the columns of all scores.
        rows: the same with their right answers.
        metric: that rows are scored by.

    Returns:
        None where there is nothing to vote on: a loss is of no answer, and long texts are all
        unlike.
    """
    result = candidate.first_run.result
    form: Form = result.form
    if metric == LOSS:
        return None
    if form == "score":
        if metric != ERROR:
            return None
        return VoteScores(MEAN, _score_mean_numbers(candidate, keys, rows, metric))
    if form == "labels":
        return VoteScores(MAJORITY, _score_common_labels(candidate, keys, rows, metric))
    # A summary is written otherwise by each run; what is right or wrong is short enough to agree.
    if form in FREE and right_or_wrong([candidate], keys) is None:
        return None
    two_classes = form == "label" and len(result.labels) == 2
    if two_classes and np.isfinite(candidate.losses).all():
        winning_runs = _runs_on_likelier_side(candidate)
        decided_by = PROBABILITY
    else:
        winning_runs = np.array(majority(answer_texts(candidate, keys)), dtype=np.int64)
        decided_by = MAJORITY
    # The vote's answer is that of one of the runs, whose score it has.
    return VoteScores(decided_by, candidate.scores[winning_runs, np.arange(len(keys))])


def _runs_on_likelier_side(candidate: CandidateResult) -> NDArray[np.int64]:
    """Of each row the place of a run that gave the class with the higher mean probability, of two.

    The loss is minus the logarithm of the right class's probability, and the other class has the
    rest, so the mean says which is likelier without a look at the right answer.
    """
    probability_of_right = np.exp(-candidate.losses)  # runs × rows
    right_is_likelier = probability_of_right.mean(axis=0) > 0.5
    # The run that is surest of the right class has it if the mean has it; the other way round too.
    surest = probability_of_right.argmax(axis=0)
    least_sure = probability_of_right.argmin(axis=0)
    runs: NDArray[np.int64] = np.where(right_is_likelier, surest, least_sure).astype(np.int64)
    return runs


def _score_mean_numbers(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], metric: str
) -> Scores:
    """The score of each row if the mean of the numbers that the runs answer is the answer."""
    answers = []  # runs × rows
    for run in candidate.runs:
        answers.append([float(str(run.predictions[key].answer)) for key in keys])
    right = np.array([float(str(row.right)) for row in rows])
    errors = np.abs(np.mean(answers, axis=0) - right)
    scores: Scores = np.array([as_score(float(error), metric) for error in errors])
    return scores


def _score_common_labels(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], metric: str
) -> Scores:
    """The score of each row if all labels that more than half of the runs give are the answer."""
    scores = []
    for key, row in zip(keys, rows, strict=True):
        counts: Counter[str] = Counter()
        for run in candidate.runs:
            counts.update(_labels_of(run.predictions[key].answer))
        labels = [label for label, count in counts.items() if 2 * count > len(candidate.runs)]
        right = row.right if isinstance(row.right, list) else []
        if metric == "f1":
            scores.append(set_f1(labels, right))
        else:
            scores.append(set_match(labels, right))
    return np.array(scores)


def _labels_of(answer: Any) -> set[str]:
    """The labels in an answer, each once; none if it is no list."""
    return set(answer) if isinstance(answer, list) else set()


def vote_of(
    label: str,
    vote: VoteScores,
    scores: Scores,
    groups: Sequence[str] | None = None,
    *,
    share: bool = False,
) -> Vote:
    """A vote with its intervals, from the score of each row and those of single runs.

    The intervals are of what these very runs score on other rows, as these are what will vote. What
    other runs of the method would do together cannot be seen from one vote.

    Args:
        label: of the candidate.
        vote: the score of each row by the vote of its runs.
        scores: of the single runs, runs × rows.
        groups: of each row; None if rows have none.
        share: whether scores are shares in percent, between 0 and 100. Their intervals are wider on
            the side of 50 %, and end at 0 and 100. A gain may be negative and is no share.
    """
    of_single_runs = scores.mean(axis=0)  # of each row
    # As tables of one run: the error of their means then comes from the rows alone.
    together = vote.row_scores[None]
    gains = (vote.row_scores - of_single_runs)[None]
    # Rows of a group are alike, so intervals come from the means of groups; the scores that are
    # shown stay means over rows.
    if groups is not None:
        together = by_group(together, groups)
        gains = by_group(gains, groups)
    low, high = mean_score(together, share=share).interval()
    if share:
        low = max(low, 0.0)
        high = min(high, 100.0)
    gain = mean_score(gains)
    gain_low, gain_high = gain.interval()
    return Vote(
        method=label, by=vote.by, runs=len(scores), alone=float(of_single_runs.mean()),
        score=float(vote.row_scores.mean()), low=low, high=high,
        gain=gain.value, gain_low=gain_low, gain_high=gain_high,
    )  # fmt: skip
