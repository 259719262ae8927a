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
    """What no method gets right, and where they differ.

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

    right: Right
    texts: list[list[str]]
    losses: Scores


def find_rows(
    results: Results, rows: Mapping[RowKey, AskedRow], most: int | None = None
) -> RowFindings | None:
    """The rows that runs get wrong, those first whose label is most surely wrong.

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
    answers = [
        _Answers(right, answer_texts(candidate, results.rows), candidate.losses)
        for candidate, right in zip(scored, right_tables, strict=True)
    ]
    findings = []
    for place, row in enumerate(results.rows):
        finding = _finding(row, place, rows.get(row), answers)
        if finding is not None:
            findings.append(finding)
    written = scored[0].first_run.result.form in FREE
    findings.sort(key=_how_sure_of_texts if written else _how_sure)
    runs = sum(len(method.right) for method in answers)
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
        if not values.size or not np.isin(values, (RIGHT, WRONG)).all():
            continue
        if (values == RIGHT).mean() >= LEAST_RIGHT:
            return [table == RIGHT for table in tables]
    return None


def _stored_metric(candidate: CandidateResult, rows: Sequence[RowKey], metric: str) -> Scores:
    """Runs × rows of a metric; NaN where it is not stored."""
    values = np.full((len(candidate.runs), len(rows)), np.nan)
    for run_place, run in enumerate(candidate.runs):
        for place, row in enumerate(rows):
            value = run.predictions[row].metrics.get(metric)
            if value is not None:
                values[run_place, place] = value
    return values


def answer_texts(candidate: CandidateResult, rows: Sequence[RowKey]) -> list[list[str]]:
    """The answers of a candidate's runs as texts, alike where they mean the same; runs × rows."""
    return [[answer_text(run.predictions[row].answer) for row in rows] for run in candidate.runs]


def answer_text(answer: Any) -> str:
    """An answer as a text, without blanks at its ends; several labels in one order."""
    if isinstance(answer, list):
        return answer_in_words(sorted(answer))
    return str(answer).strip()


def _finding(
    row: RowKey, place: int, asked: AskedRow | None, methods: Sequence[_Answers]
) -> RowFinding | None:
    """What the runs of all methods make of one row; None if all are right."""
    wrong_answers: Counter[str] = Counter()
    probabilities: list[float] = []
    for method in methods:
        for right, texts, loss in zip(
            method.right[:, place], method.texts, method.losses[:, place], strict=True
        ):
            if not right:
                wrong_answers[texts[place]] += 1
            if isfinite(loss):
                probabilities.append(exp(-loss))
    wrong_runs = wrong_answers.total()
    if not wrong_runs:
        return None
    runs = sum(len(method.right) for method in methods)
    wrong_answer, gave_it = wrong_answers.most_common(1)[0]
    right_methods = sum(bool(method.right[:, place].mean() > MOST_RUNS) for method in methods)
    smaller_camp = min(right_methods, len(methods) - right_methods)
    findings: list[Finding] = []
    if wrong_runs == runs:
        findings.append("wrong everywhere")
    if gave_it / runs > MOST_RUNS:
        findings.append("same wrong answer")
    if _is_unstable(place, methods):
        findings.append("unstable")
    if smaller_camp:
        findings.append("methods differ")
    name, number = row
    return RowFinding(
        rows=name,
        row=number,
        text="" if asked is None else asked.text,
        right="" if asked is None else asked.right_in_words,
        wrong_answer=wrong_answer,
        same_wrong=gave_it / runs,
        wrong_runs=wrong_runs,
        runs=runs,
        # A row without a loss in some runs would be compared by others than its neighbours.
        probability=fmean(probabilities) if len(probabilities) == runs else None,
        disagreement=smaller_camp / len(methods),
        findings=tuple(findings),
    )


def _is_unstable(place: int, methods: Sequence[_Answers]) -> bool:
    """Whether most methods are right in some of their seeds and wrong in others."""
    several = [method for method in methods if len(method.right) > 1]
    changing = [method for method in several if np.ptp(method.right[:, place].astype(int))]
    return bool(several) and len(changing) / len(several) > MOST_RUNS


def _how_sure(finding: RowFinding) -> tuple[bool, float, float]:
    """By what rows are sorted whose answers have a probability, the surest first."""
    agree = finding.same_wrong > MOST_RUNS
    return not agree, _known(finding.probability), -finding.same_wrong


def _how_sure_of_texts(finding: RowFinding) -> tuple[float, float]:
    """By what rows with written answers are sorted, the surest first."""
    return -finding.same_wrong, _known(finding.probability)


def _known(probability: float | None) -> float:
    """A probability; where there is none, it puts no row before others."""
    return 1.0 if probability is None else probability
