"""Reads what is there of a comparison's folder: each candidate with its runs and their scores."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorada.compare.spec import Comparison, saved_comparison
from lorada.compare.stored_plan import (
    BASELINES_FILE,
    FAILURES_FILE,
    TRIALS,
    Candidate,
    ComparisonPlan,
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
# Fields of a candidate that files of the report have, besides those of the plan.
SHOWN = (
    "score", "low", "high", "expected_loss", "mark", "letter", "p_best", "metric", "value",
    "peak_memory_gib", "seconds_per_step", "forgetting", "rates", "map_rates", "reason",
)  # fmt: skip


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
    """A candidate and all that is known of it, from its runs to its place in the report."""

    label: str  # unique, such as ``lora`` or ``lora (0.2%)``
    candidate: Candidate  # of several settings, the one that the search chose
    chosen: str = ""  # of several settings, the one that the search chose
    runs: Sequence[ScoredRun] = ()
    scores: Scores = field(default_factory=NONE)  # seeds × rows, higher for the better one
    losses: Scores = field(default_factory=NONE)  # the same in nats; NaN where there is none
    search: Search | None = None  # for its learning rate; None if there is none
    diverged: tuple[int, ...] = ()  # seeds of runs whose loss or weights became NaN or infinite
    reason: str | None = None  # why it has no run, or not one of every seed

    # What its runs show, as the report shows it; None where it was not measured.
    score: float | None = None  # mean over rows and seeds: percent, or a loss or error as it is
    metric: str = ""  # the main metric, such as ``exact_match``
    value: float | None = None  # mean of that over seeds
    peak_memory_gib: float | None = None  # GiB, the largest of its runs
    seconds_per_step: float | None = None  # of its fastest run: other work can only slow one down
    forgetting: float | None = None  # growth of the loss on a neutral text, nats per token
    rates: tuple[float, ...] = ()  # learning rates of its runs, from the lowest on
    map_rates: tuple[float, ...] = ()  # those of its maps, where they differ

    # What is decided about it.
    low: float | None = None  # ends of the score's 95 % confidence interval
    high: float | None = None
    expected_loss: float | None = None  # of taking it, in the unit of the score
    mark: str = ""  # such as ``take``, ``not worse`` or ``too few runs``
    letter: str = ""  # of groups that are not significantly different; empty without a test
    p_best: float | None = None  # against the highest score, corrected (Holm)

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
    def first_run(self) -> ScoredRun:
        """Its run of the lowest seed, which commands name."""
        return min(self.runs, key=lambda run: run.seed)

    @property
    def sizes(self) -> str:
        """The settings that give its size, as they are typed."""
        return as_given(self.candidate.parts)

    def plain(self) -> dict[str, Any]:
        """What files of the report have of it."""
        one = self.candidate
        found = {
            "label": self.label, "method": one.method, "budget": ", ".join(one.budgets),
            "above": any(one.budgets.values()), "sizes": self.sizes, "trainable": one.trainable,
            "percent": one.percent, "mergeable": one.mergeable,
            "seeds": [run.seed for run in self.runs],
        }  # fmt: skip
        trials = [] if self.search is None else [asdict(trial) for trial in self.search.trials]
        return found | {name: getattr(self, name) for name in SHOWN} | {"trials": trials}


@dataclass(frozen=True)
class Results:
    """What is there of a comparison."""

    folder: Path
    asked: Comparison
    plan: ComparisonPlan
    candidates: list[CandidateResult]  # in the order of the plan
    rows: list[RowKey]  # the held-out rows, in the order of the columns of all scores
    groups: Sequence[str] | None = None  # of each row; None if rows have none
    baselines: dict[str, Untrained] = field(default_factory=dict)  # ``as_it_is``, ``commonest``
    metric: str = ""  # what methods are compared by; empty for the main metric
    own_unit: ScoreUnit = UNKNOWN  # of the values of a user's function

    @property
    def own_metric(self) -> str:
        """The metric that the comparison itself was made by; empty for the main metric."""
        return Path(self.plan.metric_name).name

    @property
    def runs_left(self) -> bool:
        """Whether a comparison with ``--until`` was cut off; at its end it has baselines."""
        return self.asked.until is not None and not self.baselines

    @property
    def rows_without_loss(self) -> int:
        """How many held-out rows have no loss, though methods are compared by it."""
        runs = [run for one in self.candidates for run in one.runs]
        return max((run.rows_without_loss for run in runs), default=0)

    @property
    def units(self) -> tuple[int, str]:
        """How many rows, or groups of rows, are independent of each other, and what they are."""
        if self.groups is None:
            return len(self.rows), "row"
        return len(set(self.groups)), "group"


def read_comparison(folder: Path, metric: str | None = None, unit: str | None = None) -> Results:
    """Read a comparison, finished or not; a run that is missing or damaged becomes a reason.

    ``metric`` is what methods are compared by; None for the comparison's own. ``unit`` is that of
    the values of a user's function; None if the values are to show whether they are percent.
    """
    plan = saved_plan(folder)
    if plan is None:
        raise ValueError(f"{folder} holds no comparison: it has no plan.json")
    candidates, names = plan.candidates, list(plan.held_out)
    asked = saved_comparison(folder)
    failures = mapping_in(folder / FAILURES_FILE, dict[str, str])
    baselines = mapping_in(folder / BASELINES_FILE, dict[str, Untrained])
    seeds = asked.seeds
    by = Path(metric or plan.metric_name).name
    found = [_runs(folder, one, seeds, failures, names, by) for one in candidates]
    rows = _common_rows([run for runs, _ in found for run in runs], names)
    labels = Counter(one.method for one in candidates)
    measured = []
    for one, (runs, missing) in zip(candidates, found, strict=True):
        same = [run for run in runs if run.scores.keys() == set(rows)]
        if asked.until is not None:  # fewer runs than seeds are meant
            missing = [said for said in missing if not said.endswith(UNFINISHED)]
        missing += [f"{r.folder}: it was scored on other rows" for r in runs if r not in same]
        budgets = f" ({', '.join(one.budgets) or 'default size'})" if labels[one.method] > 1 else ""
        label = one.method + budgets
        search = search_of(one, folder)
        failed = {seed: failures.get(one.run(seed), "") for seed in seeds}
        candidate, chosen = settled(one, search)
        losses = [[run.predictions[row].loss for row in rows] for run in same]
        measured.append(CandidateResult(
            label, candidate, chosen, same, search=search, losses=_table(losses, rows),
            scores=_table([[run.scores[row] for row in rows] for run in same], rows),
            diverged=tuple(s for s, said in failed.items() if any(x in said for x in DIVERGED)),
            reason=one.reason or "; ".join(missing) or None,
        ))  # fmt: skip
    first = next((run for one in measured for run in one.runs), None)
    groups = None if first is None else _groups_of(first, rows)
    results = Results(folder, asked, plan, measured, rows, groups, baselines, by)
    if CODE in by:
        return _in_own_unit(results, unit)
    if unit is not None:
        raise ValueError(
            f"--unit {unit} is for a function of your own (--metric FILE.py:function): leave it "
            "out, as other metrics have a unit"
        )
    return results


def _in_own_unit(results: Results, named: str | None) -> Results:
    """The results by a user's function, whose values are percent where those of a table would be.

    Shares of one, such as True and False, are percent: a margin and an interval depend on it. Of
    values in a unit that the user has named nothing is guessed.
    """
    if named is not None:
        return replace(results, own_unit=named_unit(named))
    values = [one.row_scores.get(results.metric, []) for one in results.baselines.values()]
    untrained = [np.array([value for value in each if value is not None]) for each in values]
    tables = [one.scores for one in results.candidates if one.scores.size]
    if not tables:
        return results
    unit = unit_of(tables, [each for each in untrained if each.size])
    if unit.factor == 1:
        return replace(results, own_unit=unit)
    candidates = [_scaled(one, unit.factor) for one in results.candidates]
    baselines = {}
    for name, entry in results.baselines.items():
        scores = dict(entry.row_scores)
        for metric in scores.keys() & {results.metric}:
            scores[metric] = [v if v is None else unit.factor * v for v in scores[metric]]
        baselines[name] = replace(entry, row_scores=scores)
    return replace(results, candidates=candidates, baselines=baselines, own_unit=unit)


def _scaled(one: CandidateResult, factor: float) -> CandidateResult:
    """A candidate with all scores times a factor."""
    runs = []
    for run in one.runs:
        scores = {row: factor * score for row, score in run.scores.items()}
        runs.append(replace(run, scores=scores))
    return replace(one, runs=runs, scores=factor * one.scores)


def _runs(
    folder: Path,
    one: Candidate,
    seeds: list[int],
    failures: dict[str, str],
    held_out: Collection[str],
    metric: str,
) -> tuple[list[ScoredRun], list[str]]:
    """The scored runs of a candidate, and a line for each seed that is missing."""
    runs, missing = [], []
    for seed in seeds if not one.reason else []:
        name = one.run(seed)
        scored = (folder / name / "predictions.jsonl").is_file()
        # It waits for the search.
        error = failures.get(name) or (not scored and failures.get(f"{TRIALS}/{one.path}"))
        if error:
            missing.append(f"{name} failed: {error}")
        elif not scored:
            missing.append(f"{name}{UNFINISHED}")
        else:
            try:
                runs.append(_run(folder, name, seed, held_out, metric))
            except ValueError as error:
                missing.append(f"{name} was left out: {' '.join(str(error).split())}")
    return runs, missing


def _run(folder: Path, name: str, seed: int, held_out: Collection[str], metric: str) -> ScoredRun:
    """A run with its scores on the held-out rows; it may have been scored on others since."""
    result = read_result(folder / name)
    predictions: dict[RowKey, Prediction] = {}
    scores: dict[RowKey, float] = {}
    rows_without_loss = 0
    for prediction in read_predictions(folder / name):
        if prediction.rows not in held_out:
            continue
        row = prediction.rows, prediction.row
        by = rows_metric(metric or _main_metric_on(prediction.rows, result))
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


def _main_metric_on(rows: str, result: RunResult) -> str:
    """The main metric of a run on the rows of this name."""
    metrics = result.metrics.get(rows)
    return main_metric({} if metrics is None else metrics.scores)


def _groups_of(run: ScoredRun, rows: list[RowKey]) -> list[str] | None:
    """The group of each row, as a run has stored it; None unless every row has one."""
    groups = []
    for row in rows:
        group = run.predictions[row].group
        if group is None:
            return None
        groups.append(str(group))
    return groups


def _common_rows(runs: list[ScoredRun], names: list[str]) -> list[RowKey]:
    """The rows that most runs were scored on, in the order of their names and numbers."""
    counted = Counter(frozenset(run.scores) for run in runs)
    rows = max(counted, key=lambda found: (counted[found], len(found)), default=frozenset())
    return sorted(rows, key=lambda row: (names.index(row[0]), row[1]))


def _table(values: list[list[Any]], rows: list[RowKey]) -> Scores:
    """Runs × rows; None is NaN."""
    return np.array(values, dtype=float).reshape(len(values), len(rows))
