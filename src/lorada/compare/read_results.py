"""Reads what is there of a comparison's folder: each candidate with its runs and their scores."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from lorada.compare.spec import Comparison, saved_comparison
from lorada.compare.stored_plan import (
    BASELINES_FILE,
    FAILURES_FILE,
    TRIALS,
    Candidate,
    ComparisonPlan,
    RowScores,
    Search,
    Untrained,
    as_given,
    mapping_in,
    saved_plan,
    search_of,
    settled,
)
from lorada.decision.run_variances import Scores
from lorada.decision.score_units import UNKNOWN, ScoreUnit, named_unit, unit_of
from lorada.runs.result import Prediction, RowsMetrics, RunResult, read_predictions, read_result
from lorada.support.metric_names import LOSS, as_score, main_metric, rows_metric
from lorada.support.row_sources import CODE

RowKey = tuple[str, int]  # the name of the rows and the row's number in their file, from 1
NONE = partial(np.empty, (0, 0))
UNFINISHED = " is not finished"
DIVERGED = ("the loss became ", "is not finite after step")  # in errors of a training


@dataclass(frozen=True)
class ScoredRun:
    """A finished run that is scored on the held-out rows.

    ``scores`` are by row, higher for the better one: a loss or an error is minus itself.
    """

    folder: str  # relative to the comparison's
    seed: int
    result: RunResult
    predictions: dict[RowKey, Prediction]
    scores: dict[RowKey, float]
    rows_without_loss: int = 0  # that are left out where methods are compared by the loss


@dataclass(frozen=True, eq=False)
class CandidateResult:
    """A candidate with its runs, their scores, and why others are missing."""

    label: str  # unique, such as ``lora`` or ``lora (0.2%)``
    candidate: Candidate  # of several settings, with the sizes of the one that the search chose
    chosen: str = ""  # the name of that setting; empty where there is one alone
    runs: Sequence[ScoredRun] = ()
    scores: Scores = field(default_factory=NONE)  # seeds × rows, higher for the better one
    losses: Scores = field(default_factory=NONE)  # the same in nats; NaN where there is none
    search: Search | None = None  # for its learning rate; None if there is none
    search_seconds: float | None = None  # of the trainings of its trials; None if none is stored
    diverged: tuple[int, ...] = ()  # seeds of runs whose loss or weights became NaN or infinite
    reason: str | None = None  # why it has no run, or not one of every seed

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.candidate.method

    @property
    def trainable(self) -> int | None:
        """Trained parameters; None if it cannot be run."""
        return self.candidate.trainable

    @property
    def metrics(self) -> list[RowsMetrics]:
        """Those of its runs on the held-out rows, by the names of the rows."""
        names = dict.fromkeys(name for run in self.runs for name, _ in run.scores)
        stored = [run.result.metrics.get(name) for name in names for run in self.runs]
        return [metrics for metrics in stored if metrics is not None]

    @property
    def is_unfinished(self) -> bool:
        """Whether it waits for a run that has neither ended nor failed."""
        return self.reason is not None and self.reason.endswith(UNFINISHED)

    @property
    def first_run(self) -> ScoredRun:
        """Its run of the lowest seed, which commands name."""
        return min(self.runs, key=lambda run: run.seed)

    @property
    def sizes(self) -> str:
        """The settings that give its size, as they are typed."""
        return as_given(self.candidate.parts)


@dataclass(frozen=True)
class Results:
    """What is there of a comparison."""

    folder: Path
    asked: Comparison
    plan: ComparisonPlan
    candidates: list[CandidateResult]  # in the order of the plan
    rows: list[RowKey]  # the held-out rows, in the order of the columns of all scores
    groups: Sequence[str] | None = None  # of each row; None if rows have none
    baselines: dict[str, Untrained] = field(default_factory=dict)  # by their keys
    metric: str = ""  # what methods are compared by; empty for the main metric
    own_unit: ScoreUnit = UNKNOWN  # of the values of a user's function

    @property
    def own_metric(self) -> str:
        """The metric that the comparison itself was made by; empty for the main metric."""
        return Path(self.plan.metric_name).name

    @property
    def runs_left(self) -> bool:
        """Whether a comparison that may leave runs was cut off; at its end it has baselines."""
        return self.asked.may_leave_runs and not self.baselines

    @property
    def rows_without_loss(self) -> int:
        """How many held-out rows have no loss, though methods are compared by it."""
        runs = [run for candidate in self.candidates for run in candidate.runs]
        return max((run.rows_without_loss for run in runs), default=0)

    @property
    def units(self) -> tuple[int, str]:
        """How many rows, or groups of rows, are independent of each other, and what they are."""
        if self.groups is None:
            return len(self.rows), "row"
        return len(set(self.groups)), "group"


def read_comparison(folder: Path, metric: str | None = None, unit: str | None = None) -> Results:
    """Read a comparison, finished or not; a run that is missing or damaged becomes a reason.

    Args:
        folder: of the comparison.
        metric: what methods are compared by; None for the comparison's own.
        unit: of the values of a user's function; None if the values are to show whether they are
            percent.

    Raises:
        ValueError: if the folder has no plan, for a damaged file of the comparison, and a unit of a
            metric that has one.
    """
    plan = saved_plan(folder)
    if plan is None:
        raise ValueError(f"{folder} holds no comparison: it has no plan.json")
    asked = saved_comparison(folder)
    failures = mapping_in(folder / FAILURES_FILE, dict[str, str])
    baselines = mapping_in(folder / BASELINES_FILE, dict[str, Untrained])
    # A user's function is stored by the name of its file, wherever the file lies.
    compared_by = Path(metric or plan.metric_name).name

    held_out = list(plan.held_out)
    runs_of_candidates = []
    for candidate in plan.candidates:
        runs_of_candidates.append(
            _read_runs(folder, candidate, asked.seeds, failures, held_out, compared_by)
        )
    # Only after all runs are read it is known which rows most of them were scored on.
    all_runs = [run for runs in runs_of_candidates for run in runs.scored]
    rows = _common_rows(all_runs, held_out)
    candidates = []
    for candidate, runs in zip(plan.candidates, runs_of_candidates, strict=True):
        label = _label(candidate, plan.candidates)
        search = search_of(candidate, folder)
        if asked.may_leave_runs:  # fewer runs than seeds are meant
            runs = runs.without_unfinished()
        seconds = _search_seconds(folder / TRIALS / candidate.path)
        result = _candidate_result(candidate, label, search, runs, rows)
        candidates.append(replace(result, search_seconds=seconds))

    groups = _groups_of(candidates, rows)
    results = Results(folder, asked, plan, candidates, rows, groups, baselines, compared_by)
    if CODE in compared_by:
        return _in_own_unit(results, unit)
    if unit is not None:
        raise ValueError(
            f"--unit {unit} is for a function of your own (--metric FILE.py:function): leave it "
            "out, as other metrics have a unit"
        )
    return results


@dataclass(frozen=True)
class _SeedRuns:
    """The runs of a candidate, of each seed that was asked for."""

    scored: list[ScoredRun]
    missing: list[str]  # a line for each of the others, in the order of the seeds
    diverged: tuple[int, ...]  # seeds

    def without_unfinished(self) -> "_SeedRuns":
        """The same without lines on runs that have neither ended nor failed, if any has ended."""
        if not self.scored:
            return self
        missing = [line for line in self.missing if not line.endswith(UNFINISHED)]
        return replace(self, missing=missing)


def _read_runs(
    folder: Path,
    candidate: Candidate,
    seeds: Sequence[int],
    failures: Mapping[str, str],
    held_out: Collection[str],
    metric: str,
) -> _SeedRuns:
    """Read the runs of a candidate, scored by a metric; empty for the main one."""
    scored, missing, diverged = [], [], []
    for seed in seeds:
        name = candidate.run(seed)
        if any(text in failures.get(name, "") for text in DIVERGED):
            diverged.append(seed)
        if candidate.reason:  # it cannot be run
            continue
        has_scores = (folder / name / "predictions.jsonl").is_file()
        error = failures.get(name)
        if not error and not has_scores:  # it waits for the search, which may have failed
            error = failures.get(f"{TRIALS}/{candidate.path}")
        if error:
            missing.append(f"{name} failed: {error}")
            continue
        if not has_scores:
            missing.append(f"{name}{UNFINISHED}")
            continue
        try:
            scored.append(read_run(folder, name, seed, held_out, metric))
        except ValueError as damage:
            missing.append(f"{name} was left out: {' '.join(str(damage).split())}")
    return _SeedRuns(scored, missing, tuple(diverged))


def read_run(
    folder: Path, name: str, seed: int, held_out: Collection[str], metric: str
) -> ScoredRun:
    """A run with its scores on the held-out rows; it may have been scored on others since.

    Raises:
        ValueError: for a damaged file, a row without the metric, and a run that is not scored on
            any of these rows.
    """
    result = read_result(folder / name)
    predictions: dict[RowKey, Prediction] = {}
    scores: dict[RowKey, float] = {}
    rows_without_loss = 0
    for prediction in read_predictions(folder / name):
        if prediction.rows not in held_out:
            continue
        row = prediction.rows, prediction.row
        by = rows_metric(metric or main_metric_on(prediction.rows, result))
        value = prediction.metrics_and_loss.get(by)
        if by == LOSS and value is None:
            rows_without_loss += 1  # its response lies beyond max_length, in every run
            continue
        if value is None:
            raise ValueError(f"row {prediction.row} of {prediction.rows} has no {by}")
        predictions[row] = prediction
        scores[row] = as_score(value, by)
    if not scores:
        raise ValueError("none of the held-out rows is scored")
    return ScoredRun(name, seed, result, predictions, scores, rows_without_loss)


def _search_seconds(folder: Path) -> float | None:
    """What the trials of a search took to train; None if no trial says it.

    A trial that diverged, or whose file is damaged, counts nothing: no decision hangs on it.
    """
    seconds = []
    for path in sorted(folder.glob("trial-*/result.json")):
        with suppress(ValueError):
            seconds.append(float(read_result(path.parent).wall_time_s))
    return sum(seconds) or None


def main_metric_on(rows: str, result: RunResult) -> str:
    """The main metric of a run on the rows of this name."""
    metrics = result.metrics.get(rows)
    return main_metric({} if metrics is None else metrics.scores)


def _label(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    """The name of a candidate: its method, and its budgets if the method has several sizes."""
    sizes = sum(other.method == candidate.method for other in candidates)
    if sizes == 1:
        return candidate.method
    return f"{candidate.method} ({', '.join(candidate.budgets) or 'default size'})"


def _candidate_result(
    planned: Candidate, label: str, search: Search | None, runs: _SeedRuns, rows: list[RowKey]
) -> CandidateResult:
    """A candidate with those of its runs that are scored on ``rows``."""
    on_these_rows, scores, losses = [], [], []
    missing = list(runs.missing)
    for run in runs.scored:
        if run.scores.keys() != set(rows):
            missing.append(f"{run.folder}: it was scored on other rows")
            continue
        on_these_rows.append(run)
        scores.append([run.scores[row] for row in rows])
        losses.append([run.predictions[row].loss for row in rows])
    candidate, chosen = settled(planned, search)
    return CandidateResult(
        label=label,
        candidate=candidate,
        chosen=chosen,
        runs=on_these_rows,
        scores=_table(scores, rows),
        losses=_table(losses, rows),
        search=search,
        diverged=runs.diverged,
        reason=planned.reason or "; ".join(missing) or None,
    )


def _common_rows(runs: list[ScoredRun], names: list[str]) -> list[RowKey]:
    """The rows that most runs were scored on, in the order of ``names`` and of their numbers."""
    runs_on = Counter(frozenset(run.scores) for run in runs)
    # Of as many runs on either, the larger set.
    rows = max(runs_on, key=lambda keys: (runs_on[keys], len(keys)), default=frozenset())
    return sorted(rows, key=lambda row: (names.index(row[0]), row[1]))


def _groups_of(candidates: Sequence[CandidateResult], rows: list[RowKey]) -> list[str] | None:
    """The group of each row, as any run has stored it; None unless every row has one."""
    all_runs = [run for candidate in candidates for run in candidate.runs]
    if not all_runs:
        return None
    first_run = all_runs[0]  # groups are of the rows, so each run has stored the same
    groups = [first_run.predictions[row].group for row in rows]
    if any(group is None for group in groups):
        return None
    return [str(group) for group in groups]


def _table(values: Sequence[Sequence[float | None]], rows: list[RowKey]) -> Scores:
    """Values as an array, runs × rows, in which None is NaN; 0 runs keep the number of rows."""
    return np.array(values, dtype=float).reshape(len(values), len(rows))


def _in_own_unit(results: Results, named: str | None) -> Results:
    """The results by a user's function, whose values are percent where those of a table would be.

    Shares of one, such as True and False, are percent: a margin and an interval depend on it. Of
    values in a unit that the user has named nothing is guessed.

    Args:
        results: with the values as the function returned them.
        named: the unit that the user has named; None to recognise it from the values.
    """
    if named is not None:
        return replace(results, own_unit=named_unit(named))
    tables = [candidate.scores for candidate in results.candidates if candidate.scores.size]
    if not tables:
        return results
    # Runs have a value of every row. A baseline may lack some, which are stored as None; as NaN
    # they would fail every comparison with 0 and 1 and so hide the unit, so they are left out.
    untrained = []
    for baseline in results.baselines.values():
        for row_scores in baseline.tables_of(results.metric):
            values = [value for value in row_scores if value is not None]
            if values:
                untrained.append(np.array(values))
    unit = unit_of(tables, untrained)
    if unit.factor == 1:
        return replace(results, own_unit=unit)
    candidates = [_scaled_candidate(one, unit.factor) for one in results.candidates]
    baselines = {
        name: _scaled_baseline(baseline, results.metric, unit.factor)
        for name, baseline in results.baselines.items()
    }
    return replace(results, candidates=candidates, baselines=baselines, own_unit=unit)


def _scaled_candidate(candidate: CandidateResult, factor: float) -> CandidateResult:
    """A candidate with all scores times a factor."""
    runs = []
    for run in candidate.runs:
        scores = {row: factor * score for row, score in run.scores.items()}
        runs.append(replace(run, scores=scores))
    return replace(candidate, runs=runs, scores=factor * candidate.scores)


def _scaled_baseline(baseline: Untrained, metric: str, factor: float) -> Untrained:
    """A baseline with its scores by one metric times a factor."""

    def scaled(draw: RowScores) -> RowScores:
        if metric not in draw:
            return draw
        values = [score if score is None else factor * score for score in draw[metric]]
        return {**draw, metric: values}

    return baseline.changed(scaled)
