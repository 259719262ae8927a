"""Runs a comparison in its folder, from the check of the rows to the report; scores it again.

Several commands may run one comparison at once: each takes jobs that no other holds, and the last
one writes the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorada.compare.comparison_rows import Data, read_data
from lorada.compare.jobs.job import JOB_FILE, Job, Outcome, held
from lorada.compare.jobs.queue import Report, first_of, run_queue
from lorada.compare.make_plan import about, make_plan
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.write_report import write_report
from lorada.compare.spec import SPEC_FILE, Comparison, saved_comparison
from lorada.compare.stored_plan import (
    BASELINES_FILE,
    FAILURES_FILE,
    PLAN_FILE,
    RUNS,
    TRIALS,
    ComparisonPlan,
    mapping_in,
    saved_plan,
)
from lorada.compare.trainings import (
    BASE_FILE,
    answers_written,
    base_job,
    comparison_jobs,
    score_commonest,
)
from lorada.compare.until import Until
from lorada.data.metrics import row_value
from lorada.data.score_answers import score_answers
from lorada.data.task_rows import Rows
from lorada.inference.evaluate import BASE
from lorada.runs.folder import LOCK_FILE
from lorada.runs.result import keep_scores, read_predictions, read_result, write_predictions
from lorada.support.files import json_text, one_at_a_time, scratch_folder, write_atomic
from lorada.support.metric_names import rows_metric
from lorada.training.inputs import Prepared, prepare
from lorada.training.models.loading import own_classes

REPORTS = tuple(f"report.{kind}" for kind in ("html", "json"))
OWN = (SPEC_FILE, PLAN_FILE, TRIALS, RUNS, BASELINES_FILE, FAILURES_FILE, *REPORTS)


@dataclass(frozen=True)
class Compared:
    """The outcome of a command on a comparison."""

    summary: Summary | None  # what the report shows; None if runs are left to other commands
    reports: list[Path]  # its files, the page first
    failures: dict[str, str]  # folder of a job that failed here → the last line of its error
    left: int  # how many jobs other commands work on, or are to run after these


def compare(
    comparison: Comparison,
    folder: Path,
    pool: Callable[[], Any],
    *,
    overwrite: bool = False,
    report: Report = print,
) -> Compared:
    """Run what is not done yet of a comparison, then write its report.

    Args:
        comparison: what to compare. If the folder holds it already, it goes on there.
        folder: of the comparison.
        pool: makes the pool that runs the jobs.
        overwrite: delete the comparison in the folder first, once everything has been checked.
        report: called with lines of progress.

    Raises:
        ValueError: for rows or methods that cannot be compared, or a plan that no longer fits.
        KeyboardInterrupt: if it was interrupted; running trainings have saved then.
    """
    folder = folder.absolute()
    base, data = read(comparison)
    plan = _begin(comparison, folder, base, data, overwrite=overwrite, report=report)
    if plan.metric is not None and plan.metric["reason"]:
        report(f"scored by {plan.metric['name']}, because {plan.metric['reason']}")
    for sentence in plan.losses:
        report(sentence)
    jobs = comparison_jobs(comparison, plan, folder)
    pick = first_of if comparison.until is None else until_of(comparison, plan, folder)
    keep = partial(_keep_failure, folder)
    outcomes = run_queue(jobs, pool(), report=report, pick=pick, ended=keep)
    failed = {
        _key(job, folder): end.error for job in jobs
        if (end := outcomes[job.name]).status == "failed" and not job.done()
    }  # fmt: skip
    theirs = {name for name, end in outcomes.items() if end.status == "held"}
    if left := [job for job in jobs if job.name in theirs or job.after in theirs]:
        return Compared(None, [], failed, len(left))
    as_it_is = _as_it_is(base_job(comparison, plan, folder), pool, report)
    if as_it_is is None:
        return Compared(None, [], failed, 1)
    metric = None if plan.metric is None else plan.metric["name"]
    baselines = {"as_it_is": as_it_is, "commonest": score_commonest(data, base.tokenizer, metric)}
    write_atomic(folder / BASELINES_FILE, json_text(baselines) + "\n")
    written = write_report(folder)
    return Compared(*written, failed, 0)


def until_of(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> Until:
    """What picks the runs of a comparison that may end before all seeds of each are run."""
    places = {one.path: place for place, one in enumerate(plan.candidates) if one in plan.runnable}
    runs = folder / RUNS
    return Until(folder, comparison.until or 0.0, {
        job.name: places[str(job.folder.parent.relative_to(runs))]
        for job in comparison_jobs(comparison, plan, folder) if runs in job.folder.parents
    })  # fmt: skip


def _as_it_is(job: Job | None, pool: Callable[[], Any], report: Report) -> dict[str, Any] | None:
    """The scores of the model without any training, or the reason why there are none.

    None while another command scores it, which is at its end too.
    """
    if job is None:
        return {"reason": "no finished run has an adapter that could be switched off"}
    if not job.done():
        outcome = run_queue([job], pool(), report=report)[job.name]
        if outcome.status == "held":
            return None
        if not job.done():
            return {"reason": outcome.error}
    found: dict[str, Any] = mapping_in(job.folder / BASE_FILE)
    return found


def _begin(
    comparison: Comparison, folder: Path, base: Prepared, data: Data, *, overwrite: bool,
    report: Report,
) -> ComparisonPlan:  # fmt: skip
    """The plan of a comparison, made now or before; the folder is written only if all is well."""
    plan = None if overwrite else saved_plan(folder)
    if plan is None:
        made = make_plan(comparison, base, data, report)
        with one_at_a_time(folder):  # several commands may begin at once
            plan = None if overwrite else saved_plan(folder)
            if plan is None:
                if overwrite:
                    clear(folder)
                comparison.save(folder)
                made.save(folder)
                return made
    both = [one.model_dump() for one in (saved_comparison(folder), comparison)]
    for one in both:  # the same rows may lie in another folder by now
        one["recipe"].pop("data_dir", None)
    if both[0] != both[1]:
        raise ValueError(
            f"another command has begun another comparison in {folder} by now: choose another "
            "--output"
        )
    if (plan.train, plan.held_out) != about(data):
        raise ValueError(
            f"the rows are not those that {folder} began with: put them back, or start again "
            "with --overwrite"
        )
    return plan


def planned(
    comparison: Comparison, folder: Path, *, resume: bool, report: Report
) -> ComparisonPlan:
    """The plan of a comparison; nothing is written."""
    base, data = read(comparison)
    plan = saved_plan(folder) if resume else None
    return plan or make_plan(comparison, base, data, report)


def read(comparison: Comparison) -> tuple[Prepared, Data]:
    """The model's config and tokenizer, and the rows."""
    base = prepare(comparison.shared_recipe)
    data = read_data(comparison, base.kind, own_classes(base.config))
    return base, data


def clear(folder: Path) -> None:
    """Remove what a comparison wrote into its folder, and nothing else.

    Raises:
        HeldError: while another process works on one of its jobs.
    """
    working = {lock.parent for name in (JOB_FILE, LOCK_FILE) for lock in folder.rglob(name)}
    with held(working), scratch_folder(folder) as scratch:
        for name in reversed(OWN):
            if (path := folder / name).exists():
                path.replace(scratch / name)


def _key(job: Job, folder: Path) -> str:
    return str(job.folder.relative_to(folder))


def _keep_failure(folder: Path, job: Job, outcome: Outcome) -> None:
    """Put the error of a job into ``failures.json``, or take it out if the job is done.

    Errors of other jobs stay: other commands may run them.
    """
    if outcome.status == "held":
        return
    path, key = folder / FAILURES_FILE, _key(job, folder)
    error = "" if job.done() else outcome.error
    if not error and key not in mapping_in(path):
        return
    with one_at_a_time(path):
        found = {name: each for name, each in mapping_in(path).items() if name != key}
        write_atomic(path, json_text(found | ({key: error} if error else {})) + "\n")


def rescore(folder: Path, metric: str, *, trust_remote_code: bool = False) -> None:
    """Compute a metric for all stored answers of a comparison, and keep it with them.

    ``lorada report`` asks for it, as some metrics are computed only then: ROUGE-L, chrF, a user's.
    """
    comparison = saved_comparison(folder)
    row_value(metric)  # the user's code is tried before anything is read
    comparison = comparison.model_copy(update={"trust_remote_code": trust_remote_code})
    prepared, data = read(comparison)
    plan = saved_plan(folder)
    if plan is None or (plan.train, plan.held_out) != about(data):
        raise ValueError(f"the rows are not those that {folder} was scored on: put them back")
    written = answers_written(data, prepared.tokenizer)
    by, base = rows_metric(Path(metric).name), list[float]()
    for run in sorted((folder / RUNS).glob("*/*/seed*")):
        untrained: list[float] = []
        for held_out, rows in written.items():
            _add_metric(run, held_out, rows, metric)
            untrained += _add_metric(run, f"{held_out}{BASE}", rows, metric)
        base = untrained or base  # of the one run whose model was scored as it is
    path = folder / BASELINES_FILE
    baselines = mapping_in(path)
    commonest = score_commonest(data, prepared.tokenizer, metric)
    found = {"as_it_is": base, "commonest": commonest["row_scores"][by]}
    for key, values in found.items():
        if values and "row_scores" in baselines.get(key, {}):
            baselines[key]["row_scores"][by] = values
    write_atomic(path, json_text(baselines) + "\n")


def _add_metric(run: Path, name: str, rows: Rows, metric: str) -> list[float]:
    """Add the metric to the lines of some rows of a run; return its values, none without lines.

    Of macro F1, which single rows do not have, it is the metric that tests take in its place there.
    """
    before = [prediction for prediction in read_predictions(run) if prediction.rows == name]
    if not before:
        return []
    index_of = {rows.number(index): index for index in range(len(rows.rows))}
    answered = rows.part(index_of[prediction.row] for prediction in before)
    scores = score_answers(answered, [str(prediction.answer) for prediction in before], [metric])
    shown = Path(metric).name
    by = rows_metric(shown)
    values = [row_scores[by] for row_scores in scores.by_row]
    predictions = []
    for prediction, value in zip(before, values, strict=True):
        row_metrics = {**prediction.metrics, by: value}
        predictions.append(prediction.model_copy(update={"metrics": row_metrics}))
    write_predictions(run, name, predictions)
    metrics = read_result(run).metrics.get(name)
    if metrics is not None:
        added = {shown: scores.metrics[shown]}
        keep_scores(run, {name: metrics.model_copy(update=added)})
    return values
