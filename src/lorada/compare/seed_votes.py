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
from lorada.data.scoring.metrics import set_f1
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
    rows: Scores  # higher is better


def votes(
    candidates: Sequence[CandidateResult],
    keys: Sequence[RowKey],
    rows: Sequence[AskedRow],
    metric: str,
    groups: Sequence[str] | None = None,
    *,
    share: bool = False,
) -> list[Vote]:
    """The vote of each candidate that has two runs or more; none where runs cannot vote.

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
        voted = vote_scores(candidate, keys, rows, rows_metric(metric))
        if voted is not None:
            all_votes.append(vote_of(candidate.label, voted, candidate.scores, groups, share=share))
    return all_votes


def vote_scores(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], by: str
) -> VoteScores | None:
    """The score of each row by the vote of a candidate's runs, in the metric ``by`` of rows.

    None where there is nothing to vote on: a loss is of no answer, and long texts are all unlike.
    """
    result = candidate.first_run.result
    form: Form = result.form
    if by == LOSS:
        return None
    if form == "score":
        return VoteScores(MEAN, _of_numbers(candidate, keys, rows, by)) if by == ERROR else None
    if form == "labels":
        return VoteScores(MAJORITY, _of_label_sets(candidate, keys, rows, by))
    # A summary is written otherwise by each run; what is right or wrong is short enough to agree.
    if form in FREE and right_or_wrong([candidate], keys) is None:
        return None
    two_classes = form == "label" and len(result.labels) == 2
    if two_classes and np.isfinite(candidate.losses).all():
        chosen = _by_probability(candidate, keys)
        by_vote = PROBABILITY
    else:
        chosen = np.array(majority(answer_texts(candidate, keys)), dtype=np.int64)
        by_vote = MAJORITY
    # The vote's answer is that of one of the runs, whose score it has.
    return VoteScores(by_vote, candidate.scores[chosen, np.arange(len(keys))])


def _by_probability(candidate: CandidateResult, keys: Sequence[RowKey]) -> NDArray[np.int64]:
    """Of each row the run that is on the side of the mean probability of two classes.

    The loss is minus the logarithm of the right class's probability, and the other class has the
    rest, so the mean says which is likelier without a look at the right answer.
    """
    likely = np.exp(-candidate.losses)
    votes_right = likely.mean(axis=0) > 0.5
    # The run that is surest of the right class has it if the mean has it; the other way round too.
    surest, least_sure = likely.argmax(axis=0), likely.argmin(axis=0)
    chosen: NDArray[np.int64] = np.where(votes_right, surest, least_sure).astype(np.int64)
    return chosen


def _of_numbers(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], by: str
) -> Scores:
    answers = [[float(str(run.predictions[key].answer)) for key in keys] for run in candidate.runs]
    right = np.array([float(str(row.right)) for row in rows])
    errors = np.abs(np.mean(answers, axis=0) - right)
    scores: Scores = np.array([as_score(float(error), by) for error in errors])
    return scores


def _of_label_sets(
    candidate: CandidateResult, keys: Sequence[RowKey], rows: Sequence[AskedRow], by: str
) -> Scores:
    """Each label that more than half of the runs give, scored as one answer would be."""
    scores = []
    for key, row in zip(keys, rows, strict=True):
        counts: Counter[str] = Counter()
        for run in candidate.runs:
            counts.update(_labels_of(run.predictions[key].answer))
        labels = [label for label, count in counts.items() if 2 * count > len(candidate.runs)]
        right = row.right if isinstance(row.right, list) else []
        exact = 100.0 * (set(labels) == set(right))
        scores.append(set_f1(labels, right) if by == "f1" else exact)
    return np.array(scores)


def _labels_of(answer: Any) -> set[str]:
    return set(answer) if isinstance(answer, list) else set()


def vote_of(
    label: str,
    voted: VoteScores,
    scores: Scores,
    groups: Sequence[str] | None = None,
    *,
    share: bool = False,
) -> Vote:
    """A vote with its intervals, from the score of each row and those of single runs.

    The intervals are of what these very runs score on other rows, as these are what will vote. What
    other runs of the method would do together cannot be seen from one vote.
    """
    by_row = scores.mean(axis=0)
    together, gains = voted.rows[None], (voted.rows - by_row)[None]
    if groups is not None:
        together, gains = by_group(together, groups), by_group(gains, groups)
    low, high = mean_score(together, share=share).interval()
    if share:
        low, high = max(low, 0.0), min(high, 100.0)
    gain = mean_score(gains)
    gain_low, gain_high = gain.interval()
    return Vote(
        method=label, by=voted.by, runs=len(scores), alone=float(by_row.mean()),
        score=float(voted.rows.mean()), low=low, high=high,
        gain=gain.value, gain_low=gain_low, gain_high=gain_high,
    )  # fmt: skip
