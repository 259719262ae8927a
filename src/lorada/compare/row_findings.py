"""What is wrong with single held-out rows: with every method, in most runs, or only in some.

A row to which most runs give the same wrong answer has more often a wrong label than a hard
question. So these rows come first. Within them, where models say how probable an answer is, the
rows come in the order of the mean probability of their right answer, the least first, as confident
learning orders them by self-confidence (Northcutt et al., 2021, "Confident learning: estimating
uncertainty in dataset labels"). To sort by the share of runs first is worse there: of ten methods
one learns little, and what it guesses decides which rows all runs agree on
(studies/rows/flipped_atlas.py). Of answers that are written, two seldom agree by chance, so the
share of runs that give the same wrong one comes first, and then the probability.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorada.compare.held_out_rows import AskedRow
from lorada.compare.read_results import CandidateResult, Results, RowKey
from lorada.decision.run_variances import Scores
from lorada.support.in_words import answer_in_words
from lorada.support.metric_names import FREE

Right = NDArray[np.bool_]  # runs × rows: whether an answer is right
Finding = Literal["wrong everywhere", "same wrong answer", "unstable", "methods differ"]
RIGHT, WRONG = 100.0, 0.0  # scores of rows that are right or wrong
EXACT = ("accuracy", "exact_match")  # metrics that say it, where methods are compared by another
# The share of answers from which it says something that an answer is not exactly right: where
# methods are compared by the loss, as responses are long, none may be.
LEAST_RIGHT = 0.1
MOST_RUNS = 0.5  # the share of runs, or of methods, beyond which they are most of them


@dataclass(frozen=True)
class RowFinding:
    """A held-out row that a run answers wrongly.

    Attributes:
        rows: the name of the rows, as the comparison has it.
        row: its number in its file, from 1.
        text: what was asked; empty if it is not known, as the right answer then is.
        right: the right answer, as its file has it.
        wrong_answer: the commonest wrong answer.
        same_wrong: the share of runs that gave it, from 0 to 1.
        wrong_runs: how many runs were wrong.
        runs: how many runs there are, of all methods.
        probability: of the right answer, the mean over runs, from 0 to 1; of a written one that of
            a token, of several labels of one of them. None if there is no loss.
        disagreement: the share of methods in the smaller camp, right or wrong in most of their
            seeds: 0 if methods agree, at most 0.5.
        findings: what it is an example of.
    """

    rows: str
    row: int
    text: str
    right: str
    wrong_answer: str
    same_wrong: float
    wrong_runs: int
    runs: int
    probability: float | None
    disagreement: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class RowFindings:
    """The rows that runs get wrong, and how many rows, runs and methods they are of.

    Attributes:
        rows: that a run gets wrong; those whose label is most surely wrong first.
        scored: how many held-out rows there are.
        runs: of all methods.
        methods: that have runs.
    """

    rows: tuple[RowFinding, ...]
    scored: int
    runs: int
    methods: int

    def of(self, finding: Finding) -> list[RowFinding]:
        """The rows that are examples of a finding, in their order."""
        return [row for row in self.rows if finding in row.findings]


@dataclass(frozen=True)
class _Answers:
    """The answers of a method's runs, runs × rows."""

    is_right: Right
    texts: list[list[str]]
    losses: Scores


def find_rows(
    results: Results, rows: Mapping[RowKey, AskedRow], most: int | None = None
) -> RowFindings | None:
    """Find the rows that any run gets wrong, and put those first whose label is most surely wrong.

    Args:
        results: the comparison.
        rows: its held-out rows; of those that are not there text and right answer stay empty.
        most: how many rows to give; None for all that a run gets wrong.

    Returns:
        None where answers are neither right nor wrong, such as numbers and summaries.
    """
    scored = [candidate for candidate in results.candidates if candidate.runs]
    right_tables = right_or_wrong(scored, results.rows)
    if right_tables is None:
        return None
    methods = []
    for candidate, is_right in zip(scored, right_tables, strict=True):
        texts = answer_texts(candidate, results.rows)
        methods.append(_Answers(is_right, texts, candidate.losses))
    findings = []
    for place, key in enumerate(results.rows):
        finding = _examine_row(key, place, rows.get(key), methods)
        if finding is not None:
            findings.append(finding)
    answers_are_written = scored[0].first_run.result.form in FREE
    findings.sort(key=_order_of_texts if answers_are_written else _order_of_classes)
    runs = sum(len(method.is_right) for method in methods)
    return RowFindings(tuple(findings[:most]), len(results.rows), runs, len(scored))


def right_or_wrong(
    candidates: Sequence[CandidateResult], rows: Sequence[RowKey]
) -> list[Right] | None:
    """Whether each answer of each candidate is right; None where answers are not right or wrong.

    What methods are compared by decides if it is 0 or 100 in every row, else the accuracy or the
    exact match that is stored beside it.
    """
    scores = [candidate.scores for candidate in candidates]
    if scores and np.isin(np.concatenate(scores), (RIGHT, WRONG)).all():
        return [table == RIGHT for table in scores]
    for metric in EXACT:
        tables = [_stored_metric(candidate, rows, metric) for candidate in candidates]
        values = np.concatenate(tables) if tables else np.empty((0, 0))
        # NaN, where a run has not stored the metric, is neither right nor wrong.
        if not values.size or not np.isin(values, (RIGHT, WRONG)).all():
            continue
        if (values == RIGHT).mean() >= LEAST_RIGHT:
            return [table == RIGHT for table in tables]
    return None


def _stored_metric(candidate: CandidateResult, rows: Sequence[RowKey], metric: str) -> Scores:
    """Runs × rows of a metric that is stored beside each answer; NaN where it is not stored."""
    values = np.full((len(candidate.runs), len(rows)), np.nan)
    for run_index, run in enumerate(candidate.runs):
        for row_index, key in enumerate(rows):
            value = run.predictions[key].metrics.get(metric)
            if value is not None:
                values[run_index, row_index] = value
    return values


def answer_texts(candidate: CandidateResult, rows: Sequence[RowKey]) -> list[list[str]]:
    """The answers of a candidate's runs as texts, alike where they mean the same; runs × rows."""
    return [[answer_text(run.predictions[row].answer) for row in rows] for run in candidate.runs]


def answer_text(answer: Any) -> str:
    """An answer as a text, without blanks at its ends; several labels in one order."""
    if isinstance(answer, list):
        return answer_in_words(sorted(answer))
    return str(answer).strip()


def _examine_row(
    key: RowKey, place: int, asked: AskedRow | None, methods: Sequence[_Answers]
) -> RowFinding | None:
    """What the runs of all methods make of one row; None if all are right.

    Args:
        key: the row's file and number.
        place: of the row among the columns of all tables.
        asked: its text and right answer; None if they are not known.
        methods: the answers of each method's runs.
    """
    wrong_answers = _wrong_answers(place, methods)
    wrong_runs = wrong_answers.total()
    if not wrong_runs:
        return None
    runs = sum(len(method.is_right) for method in methods)
    [(wrong_answer, runs_with_it)] = wrong_answers.most_common(1)
    # A method is in the camp of those that are right if most of its seeds are.
    right_methods = sum(bool(method.is_right[:, place].mean() > MOST_RUNS) for method in methods)
    smaller_camp = min(right_methods, len(methods) - right_methods)
    findings: list[Finding] = []
    if wrong_runs == runs:
        findings.append("wrong everywhere")
    if runs_with_it / runs > MOST_RUNS:
        findings.append("same wrong answer")
    if _is_unstable(place, methods):
        findings.append("unstable")
    if smaller_camp:
        findings.append("methods differ")
    name, number = key
    return RowFinding(
        rows=name,
        row=number,
        text="" if asked is None else asked.text,
        right="" if asked is None else asked.right_in_words,
        wrong_answer=wrong_answer,
        same_wrong=runs_with_it / runs,
        wrong_runs=wrong_runs,
        runs=runs,
        probability=_mean_probability(place, methods),
        disagreement=smaller_camp / len(methods),
        findings=tuple(findings),
    )


def _wrong_answers(place: int, methods: Sequence[_Answers]) -> Counter[str]:
    """Wrong answer to a row → how many runs of all methods gave it."""
    wrong_answers: Counter[str] = Counter()
    for method in methods:
        for is_right, texts_of_run in zip(method.is_right[:, place], method.texts, strict=True):
            if not is_right:
                wrong_answers[texts_of_run[place]] += 1
    return wrong_answers


def _mean_probability(place: int, methods: Sequence[_Answers]) -> float | None:
    """The mean over all runs of the probability of a row's right answer: exp(-loss).

    None if a run has no loss of it: the row would be compared by other runs than its neighbours.
    """
    probabilities = []
    for method in methods:
        for loss in method.losses[:, place]:
            if not isfinite(loss):
                return None
            probabilities.append(exp(-loss))
    return fmean(probabilities)


def _is_unstable(place: int, methods: Sequence[_Answers]) -> bool:
    """Whether most methods are right in some of their seeds and wrong in others."""
    with_seeds = [method for method in methods if len(method.is_right) > 1]
    if not with_seeds:
        return False
    changing = [method for method in with_seeds if np.ptp(method.is_right[:, place].astype(int))]
    return len(changing) / len(with_seeds) > MOST_RUNS


def _order_of_classes(finding: RowFinding) -> tuple[bool, float, float]:
    """The key to sort rows whose answers have a probability: labels most surely wrong come first.

    First those to which most runs give one wrong answer; then the least probability of the right
    answer; then the largest share of runs with the same wrong one.
    """
    most_agree = finding.same_wrong > MOST_RUNS
    return not most_agree, _probability_to_sort(finding), -finding.same_wrong


def _order_of_texts(finding: RowFinding) -> tuple[float, float]:
    """The key to sort rows with written answers: labels most surely wrong come first.

    First the largest share of runs with the same wrong answer; then the least probability.
    """
    return -finding.same_wrong, _probability_to_sort(finding)


def _probability_to_sort(finding: RowFinding) -> float:
    """The probability of a row's right answer; an unknown one puts no row before others."""
    if finding.probability is None:
        return 1.0
    return finding.probability
