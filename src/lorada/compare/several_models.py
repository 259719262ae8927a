"""Several models in one comparison: a comparison of its own for each, whose jobs share one queue.

Rows, held-out rows, methods, seeds and searches are those of one command; a budget that is a share
is a share of each model. Each model's comparison lies in a folder of its own, and goes on there by
the same rules as any other. ``joined_report.py`` puts them side by side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorada.compare.hours import JobTime, MeasuredComparison, TimeLimit, WithinHours, job_times
from lorada.compare.jobs.job import Job, Outcome
from lorada.compare.jobs.queue import Pool, Report, run_queue
from lorada.compare.model_names import MODELS_FILE, folders_of_models
from lorada.compare.report.joined_report import Joined
from lorada.compare.report.write_joined_report import write_joined_report
from lorada.compare.run import (
    Begun,
    begin,
    closed_on_error,
    finish,
    measure_and_fit,
    planned,
    say_nothing,
)
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import ComparisonPlan
from lorada.support.files import write_atomic
from lorada.support.metric_names import FREE, LOSS, rows_metric
from lorada.support.plain_yaml import write_yaml


@dataclass(frozen=True)
class ComparedModels:
    """The outcome of a command on a comparison of several models."""

    summary: Joined | None  # what the report shows; None if jobs are left to other commands
    reports: list[Path]  # its files, the page first
    failures: dict[str, str]  # folder of a job that failed here → the last line of its error
    left: int  # how many jobs other commands work on
    did_not_fit: int = 0  # how many jobs were not begun, as they would not have ended in the time


def compare_models(
    comparisons: Mapping[str, Comparison],
    folder: Path,
    pool: Callable[[], Pool],
    *,
    overwrite: bool = False,
    limit: TimeLimit | None = None,
    report: Report = print,
) -> ComparedModels:
    """Run what is not done yet of the comparison of each model, then write the joined report.

    Args:
        comparisons: model → its comparison. What a folder holds already goes on there.
        folder: that of all of them.
        pool: makes the pool that runs the jobs.
        overwrite: delete what is there first, once everything has been checked.
        limit: the time that all of them may take; None for as long as it takes.
        report: called with lines of progress.

    Raises:
        ValueError: for what cannot be compared, before anything is trained or written.
    """
    folder = folder.absolute()
    folders = folders_of_models([*comparisons])
    refuse_incomparable(comparisons, folder, folders, overwrite=overwrite)
    if limit is None:
        queue = _begin_each(comparisons, folder, folders, overwrite=overwrite, report=report)
        outcomes = run_queue(
            queue.jobs, pool(), report=report, pick=queue.pick, ended=queue.keep_failure
        )
        return _finish_each(queue, outcomes, folder, folders, pool, report)

    of_folder = {folder / folders[model]: one for model, one in comparisons.items()}
    with closed_on_error(pool()) as jobs_pool:
        measured = measure_and_fit(
            of_folder, limit, jobs_pool.slots, overwrite=overwrite, report=report
        )
        fitted = {model: one.comparison for model, one in zip(comparisons, measured, strict=True)}
        queue = _begin_each(fitted, folder, folders, overwrite=overwrite, report=report)
    within = WithinHours(limit, queue.times(measured), jobs_pool.slots, queue.pick)
    outcomes = within.run(queue.jobs, jobs_pool, report=report, ended=queue.keep_failure)
    compared = _finish_each(queue, outcomes, folder, folders, pool, report)
    return replace(compared, did_not_fit=within.did_not_fit(queue.jobs))


def _begin_each(
    comparisons: Mapping[str, Comparison],
    folder: Path,
    folders: Mapping[str, str],
    *,
    overwrite: bool,
    report: Report,
) -> "_SharedQueue":
    """Begin the comparison of each model, or go on with it, and put their jobs into one queue."""
    write_atomic(folder / MODELS_FILE, write_yaml({"models": dict(folders)}))
    begun = {}
    for model, comparison in comparisons.items():
        model_folder = folder / folders[model]
        begun[model] = begin(comparison, model_folder, overwrite=overwrite, report=report)
    return _SharedQueue(begun)


def _finish_each(
    queue: "_SharedQueue",
    outcomes: Mapping[str, Outcome],
    folder: Path,
    folders: Mapping[str, str],
    pool: Callable[[], Pool],
    report: Report,
) -> ComparedModels:
    """Score what needs finished runs, and write the reports, unless others have jobs left."""
    failures: dict[str, str] = {}
    left = 0
    for model, one in queue.begun.items():
        finished = finish(one, queue.outcomes_of(model, outcomes), pool, report)
        for job, error in finished.failures.items():
            failures[f"{folders[model]}/{job}"] = error
        left += finished.left
    if left:
        return ComparedModels(None, [], failures, left)
    joined, reports = write_joined_report(folder, folders)
    return ComparedModels(joined, reports, failures, 0)


def refuse_incomparable(
    comparisons: Mapping[str, Comparison],
    folder: Path,
    folders: Mapping[str, str],
    *,
    overwrite: bool,
) -> None:
    """Refuse models that cannot do the rows, or whose scores say different things.

    Nothing is written. Of what has begun the plan is read, else it is made.

    Raises:
        ValueError: naming the model.
    """
    plans: dict[str, ComparisonPlan] = {}
    for model, comparison in comparisons.items():
        try:
            plans[model] = planned(
                comparison, folder / folders[model], resume=not overwrite, report=say_nothing
            )
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error
    metrics = {plan.metric_name for plan in plans.values()}
    forms = {plan.kept.form for plan in plans.values()}
    if len(metrics) > 1 or len(forms) > 1:
        raise ValueError(
            f"the models are scored by {' and '.join(sorted(metrics))}, which cannot be compared: "
            "name one with --metric"
        )
    by_tokens = rows_metric(metrics.pop()) == LOSS and forms <= {*FREE, "text"}
    if by_tokens and len(_vocabularies(comparisons)) > 1:
        raise ValueError(
            f"losses by token of {' and '.join(comparisons)}, which have different vocabularies, "
            "cannot be compared: pass --metric chrf, or another metric of written answers"
        )


def _vocabularies(comparisons: Mapping[str, Comparison]) -> set[frozenset[Any]]:
    """The different vocabularies of the models, each as its tokens with their ids."""
    from lorada.training.inputs import prepare

    vocabularies = set()
    for comparison in comparisons.values():
        tokenizer = prepare(comparison.shared_recipe).tokenizer
        vocabularies.add(frozenset(tokenizer.get_vocab().items()))
    return vocabularies


class _SharedQueue:
    """The jobs of several comparisons in one queue, each named by its model."""

    def __init__(self, begun: Mapping[str, Begun]) -> None:
        self.begun = begun
        self._picks = {model: one.pick for model, one in begun.items()}
        self._model_of: dict[str, str] = {}  # by the name of the job in the queue
        self._own_job: dict[str, Job] = {}  # likewise, as its comparison knows it
        self.jobs: list[Job] = []
        for model, one in begun.items():
            for job in one.jobs:
                after = self._queued_name(model, job.after) if job.after else ""
                queued = replace(job, name=self._queued_name(model, job.name), after=after)
                self._model_of[queued.name] = model
                self._own_job[queued.name] = job
                self.jobs.append(queued)

    def pick(self, ready: Sequence[Job], running: Collection[str]) -> Job | None:
        """The next job of the first model that has one; each by its comparison's own rule."""
        for model, pick in self._picks.items():
            queued_of_own = {}
            own_ready = []
            for job in ready:
                if self._model_of[job.name] == model:
                    own = self._own_job[job.name]
                    queued_of_own[own.name] = job
                    own_ready.append(own)
            own_running = []
            for name in running:
                if self._model_of[name] == model:
                    own_running.append(self._own_job[name].name)
            picked = pick(own_ready, own_running)
            if picked is not None:
                return queued_of_own[picked.name]
        return None

    def times(self, measured: Sequence[MeasuredComparison]) -> dict[str, JobTime]:
        """The time of each job, of comparisons that were measured in the order of the models."""
        times = {}
        for (model, one), of_model in zip(self.begun.items(), measured, strict=True):
            for name, job_time in job_times(of_model, one.folder, one.jobs).items():
                after = self._queued_name(model, job_time.after) if job_time.after else ""
                times[self._queued_name(model, name)] = replace(job_time, after=after)
        return times

    @staticmethod
    def _queued_name(model: str, name: str) -> str:
        """What a job of a model is called in the queue."""
        return f"{model}: {name}"

    def keep_failure(self, job: Job, outcome: Outcome) -> None:
        """Keep the error of a job in the folder of its comparison."""
        begun = self.begun[self._model_of[job.name]]
        begun.keep_failure(self._own_job[job.name], outcome)

    def outcomes_of(self, model: str, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """What became of the jobs of a model, by the names that its comparison knows."""
        own_outcomes = {}
        for name, outcome in outcomes.items():
            if self._model_of[name] == model:
                own_outcomes[self._own_job[name].name] = outcome
        return own_outcomes
