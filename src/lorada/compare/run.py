"""Runs a comparison in its folder, from the check of the rows to the report; scores it again.

Several commands may run one comparison at once: each takes jobs that no other holds, and the last
one writes the report.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lorada.compare.baselines.score_baselines import (
    baselines_job,
    check_baselines,
    rescored,
    score_given,
    stored_baselines,
)
from lorada.compare.comparison_rows import Data, read_data
from lorada.compare.curve_jobs import check_curve, curve_jobs
from lorada.compare.forecast import average_costs
from lorada.compare.hours import (
    MeasuredComparison,
    TimeLimit,
    WithinHours,
    fitting_trials,
    job_times,
)
from lorada.compare.jobs.job import JOB_FILE, Job, Outcome, held
from lorada.compare.jobs.queue import Pick, Pool, Report, first_of, run_queue
from lorada.compare.kept import base_losses_jobs, read_kept, refuse_changed
from lorada.compare.make_plan import fingerprints_of, make_plan
from lorada.compare.read_results import read_comparison
from lorada.compare.report.summarize_comparison import Summary, summarize
from lorada.compare.report.write_report import write_report
from lorada.compare.scaled import SCALES, jobs_of_pick
from lorada.compare.spec import SPEC_FILE, Comparison, saved_comparison
from lorada.compare.stored_plan import (
    AS_IT_IS,
    BASELINES,
    BASELINES_FILE,
    COMMONEST,
    CURVE,
    FAILURES_FILE,
    KEPT,
    PLAN_FILE,
    RUNS,
    TRIALS,
    ComparisonPlan,
    Untrained,
    mapping_in,
    record_in,
    saved_plan,
)
from lorada.compare.trainings import answers_written, base_job, comparison_jobs, score_commonest
from lorada.compare.until import Until
from lorada.data.rows.rows import Rows
from lorada.data.scoring.row_metrics import row_value
from lorada.data.scoring.score_answers import score_answers
from lorada.inference.evaluate import BASE
from lorada.runs.folder import BASE_FILE, LOCK_FILE
from lorada.runs.result import (
    at_scale,
    keep_scores,
    read_predictions,
    read_result,
    write_predictions,
)
from lorada.support.files import json_text, one_at_a_time, scratch_folder, write_atomic
from lorada.support.metric_names import rows_metric
from lorada.training.inputs import Prepared, prepare
from lorada.training.models.loading import own_classes

REPORT_FILES = ("report.html", "report.json")
# All that a comparison writes into its folder. What the folders of its searches and runs hold is
# said in ``runs/folder.py``.
COMPARISON_FILES = (
    SPEC_FILE, PLAN_FILE, TRIALS, RUNS, CURVE, KEPT, BASELINES, BASELINES_FILE, FAILURES_FILE,
    *REPORT_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """The outcome of a command on a comparison."""

    summary: Summary | None  # what the report shows; None if runs are left to other commands
    reports: list[Path]  # its files, the page first
    failures: dict[str, str]  # folder of a job that failed here → the last line of its error
    left: int  # how many jobs other commands work on, or are to run after these
    did_not_fit: int = 0  # how many jobs were not begun, as they would not have ended in the time


def compare(
    comparison: Comparison,
    folder: Path,
    pool: Callable[[], Pool],
    *,
    overwrite: bool = False,
    limit: TimeLimit | None = None,
    report: Report = print,
) -> Compared:
    """Run what is not done yet of a comparison, then write its report.

    Args:
        comparison: what to compare. If the folder holds it already, it goes on there.
        folder: of the comparison.
        pool: makes the pool that runs the jobs.
        overwrite: delete the comparison in the folder first, once everything has been checked.
        limit: the time that it may take; None for as long as it takes.
        report: called with lines of progress.

    Raises:
        ValueError: for rows or methods that cannot be compared, a plan that no longer fits, or a
            time in which not one run of each method ends.
        KeyboardInterrupt: if it was interrupted; running trainings have saved then.
    """
    if limit is None:
        begun = begin(comparison, folder, overwrite=overwrite, report=report)
        outcomes = run_queue(
            begun.jobs, pool(), report=report, pick=begun.pick, ended=begun.keep_failure
        )
        return finish(begun, outcomes, pool, report)

    with closed_on_error(pool()) as jobs_pool:
        (measured,) = measure_and_fit(
            {folder: comparison}, limit, jobs_pool.slots, overwrite=overwrite, report=report
        )
        begun = begin(measured.comparison, folder, overwrite=overwrite, report=report)
    times = job_times(measured, begun.folder, begun.jobs)
    within = WithinHours(limit, times, jobs_pool.slots, begun.pick)
    outcomes = within.run(begun.jobs, jobs_pool, report=report, ended=begun.keep_failure)
    compared = finish(begun, outcomes, pool, report)
    return replace(compared, did_not_fit=within.did_not_fit(begun.jobs))


@contextmanager
def closed_on_error(pool: Pool) -> Iterator[Pool]:
    """Close a pool if what comes before its jobs is refused."""
    try:
        yield pool
    except BaseException:
        pool.close()
        raise


def measure_and_fit(
    comparisons: Mapping[Path, Comparison],
    limit: TimeLimit,
    slots: int,
    *,
    overwrite: bool,
    report: Report,
) -> list[MeasuredComparison]:
    """Measure what trainings take, and choose how many rates are tried; nothing is written.

    Args:
        comparisons: folder → the comparison, those that share the time.
        limit: the time.
        slots: how many jobs run at once.
        overwrite: whether what the folders hold is started again.
        report: called with lines of progress.

    Raises:
        ValueError: if not even one run of each candidate fits, and for a curve, whose trainings
            come after the decision.
    """
    if any(comparison.curve for comparison in comparisons.values()):
        raise ValueError(
            "a curve trains after the decision, which the hours do not count: leave it out, and "
            "add it to the finished comparison"
        )
    measured = []
    has_begun = False
    for folder, comparison in comparisons.items():
        plan = None if overwrite else saved_plan(folder)
        has_begun |= plan is not None
        if plan is None:
            plan = planned(comparison, folder, resume=False, report=say_nothing)
        costs = average_costs(comparison, plan, report, limit.gpus_per_job)
        measured.append(MeasuredComparison(comparison, plan, costs))
    if has_begun:  # searches go on with the rates that they began with
        return measured
    trials = fitting_trials(measured, limit, slots)
    if trials != measured[0].comparison.trials:
        report(
            f"{trials} rates are tried for each method instead of "
            f"{measured[0].comparison.trials}, so that the comparison fits into the time"
        )
    return [one.with_trials(trials) for one in measured]


def say_nothing(line: str) -> None:
    """Progress of what is made again, and reported then."""


@dataclass(frozen=True)
class Begun:
    """A comparison whose folder has its settings and its plan, and the jobs that it takes."""

    comparison: Comparison
    folder: Path
    base: Prepared
    data: Data
    plan: ComparisonPlan
    jobs: list[Job]  # those that are done are among them too, and what is half done goes on

    @property
    def pick(self) -> Pick:
        """What chooses the next of its jobs."""
        if self.comparison.until is None:
            return first_of
        return until_of(self.comparison, self.plan, self.folder)

    def keep_failure(self, job: Job, outcome: Outcome) -> None:
        """Put the error of one of its jobs into ``failures.json``, or take it out again."""
        _keep_failure(self.folder, job, outcome)


def begin(comparison: Comparison, folder: Path, *, overwrite: bool, report: Report) -> Begun:
    """Check a comparison, make or read its plan, and list its jobs; see ``compare``."""
    folder = folder.absolute()
    base, data = read(comparison)
    check_baselines(comparison, base, data)
    plan = _begin(comparison, folder, base, data, overwrite=overwrite, report=report)
    if plan.metric is not None and plan.metric.reason:
        report(f"scored by {plan.metric.name}, because {plan.metric.reason}")
    for sentence in plan.losses:
        report(sentence)
    jobs = comparison_jobs(comparison, plan, folder)
    baselines = baselines_job(comparison, base, data, folder)
    if baselines is not None:
        jobs.append(baselines)
    jobs += base_losses_jobs(comparison, plan, folder)
    return Begun(comparison, folder, base, data, plan, jobs)


def finish(
    begun: Begun, outcomes: Mapping[str, Outcome], pool: Callable[[], Pool], report: Report
) -> Compared:
    """Score what needs finished runs, and write the report; unless other commands have jobs left.

    Args:
        begun: the comparison.
        outcomes: what became of its jobs, by their names.
        pool: makes the pool that runs the jobs that are left.
        report: called with lines of progress.
    """
    comparison, plan, folder, data = begun.comparison, begun.plan, begun.folder, begun.data
    failures = _failed(begun.jobs, outcomes, folder)
    jobs_left = _jobs_of_others(begun.jobs, outcomes)
    if jobs_left:  # the last of the commands that work on it writes the report
        return Compared(None, [], failures, len(jobs_left))

    # Scores without training come last, as they need a run whose adapter can be switched off.
    as_it_is = _as_it_is(base_job(comparison, plan, folder), pool, report)
    if as_it_is is None:
        return Compared(None, [], failures, 1)
    metric = plan.metric_name or None
    tokenizer = begun.base.tokenizer
    untrained = {
        AS_IT_IS: as_it_is,
        COMMONEST: score_commonest(data, tokenizer, metric),
        **stored_baselines(folder, failures.get(BASELINES, "")),
        **score_given(comparison, answers_written(data, tokenizer), metric),
    }
    _write_baselines(folder, untrained)
    scale_failures = _score_smaller_scales(comparison, plan, folder, pool, report)
    curve_failures = _train_on_fewer_rows(comparison, plan, folder, pool, report)
    summary, reports = write_report(folder)
    return Compared(summary, reports, failures | scale_failures | curve_failures, 0)


def _score_smaller_scales(
    comparison: Comparison,
    plan: ComparisonPlan,
    folder: Path,
    pool: Callable[[], Pool],
    report: Report,
) -> dict[str, str]:
    """Score the pick at smaller scales of its adapter, as far as that is not done.

    Returns the errors of jobs that failed, by their folders.
    """
    summary = summarize(read_comparison(folder))
    jobs = jobs_of_pick(comparison, plan, folder, summary)
    return _run_of_pick(jobs, folder, pool, report)


def _train_on_fewer_rows(
    comparison: Comparison,
    plan: ComparisonPlan,
    folder: Path,
    pool: Callable[[], Pool],
    report: Report,
) -> dict[str, str]:
    """Train the pick on half and on a quarter of the training rows, where that is asked for.

    It goes on too where an earlier command has begun it. Returns the errors of jobs that failed, by
    their folders.
    """
    if not comparison.curve and not (folder / CURVE).is_dir():
        return {}
    results = read_comparison(folder)
    best = summarize(results).best
    if not best:
        report("no method is to be taken, so none is trained on fewer rows")
    jobs = curve_jobs(comparison, plan, results, best)
    return _run_of_pick(jobs, folder, pool, report)


def _run_of_pick(
    jobs: Sequence[Job], folder: Path, pool: Callable[[], Pool], report: Report
) -> dict[str, str]:
    """Run jobs that follow the decision; returns the errors of those that failed, by folder.

    No pool is made where there are none.
    """
    if not jobs:
        return {}
    outcomes = run_queue(jobs, pool(), report=report)
    return _failed(jobs, outcomes, folder)


def _failed(jobs: Sequence[Job], outcomes: Mapping[str, Outcome], folder: Path) -> dict[str, str]:
    """The errors of jobs that failed here, by their folders."""
    failures = {}
    for job in jobs:
        # Another command may have done it after it failed here.
        if outcomes[job.name].status == "failed" and not job.done():
            failures[_key(job, folder)] = outcomes[job.name].error
    return failures


def _jobs_of_others(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> list[Job]:
    """The jobs that other commands work on, and those that wait for these."""
    held_names = {name for name, outcome in outcomes.items() if outcome.status == "held"}
    return [job for job in jobs if job.name in held_names or job.after in held_names]


def until_of(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> Until:
    """What picks the runs of a comparison that may end before all seeds of each are run."""
    place_of_path = {
        candidate.path: place
        for place, candidate in enumerate(plan.candidates)
        if candidate.reason is None
    }
    runs_folder = folder / RUNS
    place_of_job: dict[str, int] = {}
    for job in comparison_jobs(comparison, plan, folder):
        if runs_folder in job.folder.parents:  # the others are searches
            path = job.folder.parent.relative_to(runs_folder)
            place_of_job[job.name] = place_of_path[str(path)]
    return Until(folder, comparison.until or 0.0, place_of_job)


def _as_it_is(job: Job | None, pool: Callable[[], Pool], report: Report) -> Untrained | None:
    """The scores of the model without any training, or the reason why there are none.

    None while another command scores it, which is at its end too.
    """
    if job is None:
        return Untrained(reason="no finished run has an adapter that could be switched off")
    if not job.done():
        outcome = run_queue([job], pool(), report=report)[job.name]
        if outcome.status == "held":
            return None
        if not job.done():
            return Untrained(reason=outcome.error)
    return record_in(job.folder / BASE_FILE, Untrained)


def _write_baselines(folder: Path, baselines: Mapping[str, Untrained]) -> None:
    stored = {name: baseline.stored() for name, baseline in baselines.items()}
    write_atomic(folder / BASELINES_FILE, json_text(stored) + "\n")


def _begin(
    comparison: Comparison, folder: Path, base: Prepared, data: Data, *, overwrite: bool,
    report: Report,
) -> ComparisonPlan:  # fmt: skip
    """The plan of a comparison, made now or before; the folder is written only if all is well.

    Raises:
        ValueError: if the folder holds the plan of another comparison, or of other rows.
    """
    plan = None if overwrite else saved_plan(folder)
    if plan is None:
        new_plan = make_plan(comparison, base, data, report)
        _check_curve(comparison, data, new_plan)
        with one_at_a_time(folder):  # several commands may begin at once
            plan = None if overwrite else saved_plan(folder)
            if plan is None:
                if overwrite:
                    clear(folder)
                comparison.save(folder)
                new_plan.save(folder)
                return new_plan
    if not saved_comparison(folder).is_same(comparison):
        raise ValueError(
            f"another command has begun another comparison in {folder} by now: choose another "
            "--output"
        )
    if not fingerprints_of(data).are_of(plan):
        raise ValueError(
            f"the rows are not those that {folder} began with: put them back, or start again "
            "with --overwrite"
        )
    refuse_changed(data.kept, plan.kept)
    _check_curve(comparison, data, plan)
    return plan


def _check_curve(comparison: Comparison, data: Data, plan: ComparisonPlan) -> None:
    """Refuse a curve that cannot be measured, where one is asked for."""
    if comparison.curve:
        check_curve(comparison, data.train, plan.batch)


def planned(
    comparison: Comparison, folder: Path, *, resume: bool, report: Report
) -> ComparisonPlan:
    """The plan of a comparison; nothing is written."""
    base, data = read(comparison)
    check_baselines(comparison, base, data)
    plan = saved_plan(folder) if resume else None
    if plan is None:
        plan = make_plan(comparison, base, data, report)
    _check_curve(comparison, data, plan)
    return plan


class BaseAndData(NamedTuple):
    """What a comparison begins with."""

    base: Prepared  # the model's config and tokenizer
    data: Data


def read(comparison: Comparison, *, with_kept: bool = True) -> BaseAndData:
    """The model's config and tokenizer, and the rows; ``with_kept`` those to keep too."""
    base = prepare(comparison.shared_recipe)
    classes = own_classes(base.config)
    data = read_data(comparison, base.kind, classes)
    if with_kept:
        data = replace(data, kept=read_kept(comparison, data.train, base, classes))
    return BaseAndData(base, data)


def clear(folder: Path) -> None:
    """Remove what a comparison wrote into its folder, and nothing else.

    Raises:
        HeldError: while another process works on one of its jobs.
    """
    locks = [*folder.rglob(JOB_FILE), *folder.rglob(LOCK_FILE)]
    with held({lock.parent for lock in locks}), scratch_folder(folder) as scratch:
        # Its settings go last: if this is interrupted, the folder is still known as a comparison's.
        for name in reversed(COMPARISON_FILES):
            path = folder / name
            if path.exists():
                path.replace(scratch / name)


def _key(job: Job, folder: Path) -> str:
    """How ``failures.json`` names a job: by its folder."""
    return str(job.folder.relative_to(folder))


def _keep_failure(folder: Path, job: Job, outcome: Outcome) -> None:
    """Put the error of a job into ``failures.json``, or take it out if the job is done.

    Errors of other jobs stay: other commands may run them.
    """
    if outcome.status == "held":
        return
    path = folder / FAILURES_FILE
    key = _key(job, folder)
    error = "" if job.done() else outcome.error
    if not error and key not in mapping_in(path):
        return
    with one_at_a_time(path):
        failures = mapping_in(path)
        failures.pop(key, None)
        if error:
            failures[key] = error
        write_atomic(path, json_text(failures) + "\n")


def rescore(folder: Path, metric: str, *, trust_remote_code: bool = False) -> None:
    """Compute a metric for all stored answers of a comparison, and keep it with them.

    ``lorada report`` asks for it, as some metrics are computed only then: ROUGE-L, chrF, a user's.
    """
    comparison = saved_comparison(folder)
    row_value(metric)  # the user's code is tried before anything is read
    comparison = comparison.model_copy(update={"trust_remote_code": trust_remote_code})
    base, data = read(comparison, with_kept=False)
    plan = saved_plan(folder)
    if plan is None or not fingerprints_of(data).are_of(plan):
        raise ValueError(f"the rows are not those that {folder} was scored on: put them back")

    as_it_is: list[float | None] = []
    held_out = answers_written(data, base.tokenizer)
    on_fewer_rows = (folder / CURVE).glob("*/*/*/seed*")
    for run in sorted([*(folder / RUNS).glob("*/*/seed*"), *on_fewer_rows]):
        without_adapter: list[float | None] = []
        for name, rows in held_out.items():
            _add_metric(run, name, rows, metric)
            for scale in SCALES:  # at which the pick alone was scored
                _add_metric(run, at_scale(name, scale), rows, metric)
            without_adapter += _add_metric(run, f"{name}{BASE}", rows, metric)
        if without_adapter:  # the model as it is was scored in one run alone
            as_it_is = without_adapter

    name_of_rows = rows_metric(Path(metric).name)
    commonest = score_commonest(data, base.tokenizer, metric).row_scores.get(name_of_rows, [])
    baselines: dict[str, Untrained] = mapping_in(folder / BASELINES_FILE, dict[str, Untrained])
    for name, baseline in baselines.items():
        baselines[name] = rescored(baseline, list(held_out.values()), metric)
    baselines |= score_given(comparison, held_out, metric)
    for name, values in ((AS_IT_IS, as_it_is), (COMMONEST, commonest)):
        baseline = baselines.get(name, Untrained())
        if values and baseline.row_scores:
            row_scores = {**baseline.row_scores, name_of_rows: values}
            baselines[name] = replace(baseline, row_scores=row_scores)
    _write_baselines(folder, baselines)


def _add_metric(run: Path, name: str, rows: Rows, metric: str) -> list[float]:
    """Add the metric to the lines of some rows of a run; return its values, none without lines.

    Of macro F1, which single rows do not have, it is the metric that tests take in its place there.
    """
    before = [prediction for prediction in read_predictions(run) if prediction.rows == name]
    if not before:
        return []
    index_of_number = {rows.number(index): index for index in range(len(rows.rows))}
    answered_rows = rows.part(index_of_number[prediction.row] for prediction in before)
    answers = [str(prediction.answer) for prediction in before]
    scores = score_answers(answered_rows, answers, [metric])

    shown_name = Path(metric).name
    name_of_rows = rows_metric(shown_name)
    values = [row_metrics[name_of_rows] for row_metrics in scores.by_row]
    predictions = []
    for prediction, value in zip(before, values, strict=True):
        row_metrics = {**prediction.metrics, name_of_rows: value}
        predictions.append(prediction.model_copy(update={"metrics": row_metrics}))
    write_predictions(run, name, predictions)

    metrics = read_result(run).metrics.get(name)
    if metrics is not None:
        added = {shown_name: scores.metrics[shown_name]}
        keep_scores(run, {name: metrics.model_copy(update=added)})
    return values
