"""Runs a comparison in its folder, from the check of the rows to the report; scores it again."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.compare.comparison_rows import Data, read_data
from lorada.compare.jobs.job import JOB_FILE, Job, Outcome, held
from lorada.compare.jobs.queue import Report, first_of, run_queue, shard
from lorada.compare.make_plan import about, make_plan
from lorada.compare.plan import (
    BASELINES_FILE,
    FAILURES_FILE,
    PLAN_FILE,
    RUNS,
    TRIALS,
    ComparisonPlan,
    mapping_in,
    saved_plan,
)
from lorada.compare.report.summary import Summary
from lorada.compare.report.write_report import write_report
from lorada.compare.spec import SPEC_FILE, Comparison, saved_comparison
from lorada.compare.trainings import BASE_FILE, base_job, comparison_jobs, score_commonest
from lorada.compare.until import Until
from lorada.data.metrics import RowValue, row_value
from lorada.inference.evaluate import BASE
from lorada.runs.folder import LOCK_FILE
from lorada.runs.result import read_predictions, write_predictions
from lorada.support.files import json_text, one_at_a_time, scratch_folder, write_atomic
from lorada.support.row_sources import Row
from lorada.training.inputs import Prepared, prepare
from lorada.training.models.loading import own_classes

REPORTS = tuple(f"report.{kind}" for kind in ("html", "json"))
OWN = (SPEC_FILE, PLAN_FILE, TRIALS, RUNS, BASELINES_FILE, FAILURES_FILE, *REPORTS)


@dataclass(frozen=True)
class Compared:
    """The outcome of a command on a comparison."""

    summary: Summary | None  # what the report shows; None if runs are left to other commands
    reports: list[Path]  # its files, the page first
    failures: dict[str, str]  # folder of a job → the last line of its error
    left: int  # how many jobs are left to other commands, such as other shards


def compare(
    comparison: Comparison,
    folder: Path,
    pool: Callable[[], Any],
    *,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    report: Report = print,
) -> Compared:
    """Run what is not done yet of a comparison, then write its report.

    Args:
        comparison: what to compare. If the folder holds it already, it goes on there.
        folder: of the comparison.
        pool: makes the pool that runs the jobs.
        overwrite: delete the comparison in the folder first, once everything has been checked.
        part: run only the i-th of n parts of the jobs, as (i, n); None for all.
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
    jobs = comparison_jobs(comparison, plan, folder)
    mine = jobs if part is None else shard(jobs, *part)
    own = {_key(job, folder) for job in mine}
    before = _kept_failures(folder, own)
    pick = first_of if comparison.until is None else until_of(comparison, plan, folder)
    outcomes = run_queue(mine, pool(), report=report, pick=pick)
    others, failed = _kept_failures(folder, own), _failures(mine, outcomes, folder)
    write_atomic(folder / FAILURES_FILE, json_text({**others, **failed}) + "\n")
    # Of those of other parts that failed before this command, the parts may be trying again.
    failed |= {key: error for key, error in others.items() if key not in before}
    left = [job for job in jobs if not job.done() and _key(job, folder) not in failed]
    if comparison.until is not None:  # runs that are not needed any more
        left = [job for job in left if outcomes[job.name].status != "waiting"]
    if left:
        return Compared(None, [], failed, len(left))
    job = base_job(comparison, plan, folder)
    metric = None if plan.metric is None else plan.metric["name"]
    baselines = {
        "as_it_is": _as_it_is(job, pool, report),
        "commonest": score_commonest(data, metric),
    }
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


def _as_it_is(job: Job | None, pool: Callable[[], Any], report: Report) -> dict[str, Any]:
    """The scores of the model without any training, or the reason why there are none."""
    if job is None:
        return {"reason": "no finished run has an adapter that could be switched off"}
    if not job.done():
        outcome = run_queue([job], pool(), report=report)[job.name]
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
        with one_at_a_time(folder):  # shards may begin at once
            plan = None if overwrite else saved_plan(folder)
            if plan is None:
                if overwrite:
                    clear(folder)
                comparison.save(folder)
                made.save(folder)
                return made
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


def _kept_failures(folder: Path, own: Collection[str]) -> dict[str, str]:
    """What is in ``failures.json`` of other parts; one's ``own`` is removed there."""
    found = mapping_in(folder / FAILURES_FILE)
    left = {key: error for key, error in found.items() if key not in own}
    if left != found:
        write_atomic(folder / FAILURES_FILE, json_text(left) + "\n")
    return left


def _failures(jobs: list[Job], outcomes: dict[str, Outcome], folder: Path) -> dict[str, str]:
    """The error of each job that failed; one that waits for such a job has the same."""
    errors: dict[str, str] = {}  # by the name of the job
    for job in jobs:
        outcome = outcomes[job.name]
        error = outcome.error if outcome.status == "failed" else errors.get(job.after, "")
        if error and not job.done():
            errors[job.name] = error
    return {_key(job, folder): errors[job.name] for job in jobs if job.name in errors}


def rescore(folder: Path, metric: str, *, trust_remote_code: bool = False) -> None:
    """Compute a metric for all stored answers of a comparison, and keep it with them.

    ``lorada report`` asks for it, as some metrics are computed only then: ROUGE-L, chrF, a user's.
    """
    comparison, value = saved_comparison(folder), row_value(metric)
    if value is None:  # it is stored already
        return
    comparison = comparison.model_copy(update={"trust_remote_code": trust_remote_code})
    _, data = read(comparison)
    plan = saved_plan(folder)
    if plan is None or (plan.train, plan.held_out) != about(data):
        raise ValueError(f"the rows are not those that {folder} was scored on: put them back")
    by_number: dict[str, dict[int, Row]] = {
        held_out: {rows.number(index): row for index, row in enumerate(rows.rows)}
        for held_out, rows in data.held_out.items()
    }
    name, base = Path(metric).name, list[float]()
    for run in sorted((folder / RUNS).glob("*/*/seed*")):
        untrained: list[float] = []
        for held_out, rows in by_number.items():
            _add_metric(run, held_out, rows, name, value)
            untrained += _add_metric(run, f"{held_out}{BASE}", rows, name, value)
        base = untrained or base  # of the one run whose model was scored as it is
    path = folder / BASELINES_FILE
    baselines = mapping_in(path)
    found = {"as_it_is": base, "commonest": score_commonest(data, metric)["row_scores"][name]}
    for key, values in found.items():
        if values and "row_scores" in baselines.get(key, {}):
            baselines[key]["row_scores"][name] = values
    write_atomic(path, json_text(baselines) + "\n")


def _add_metric(
    run: Path, name: str, rows: dict[int, Row], metric: str, value: RowValue
) -> list[float]:
    """Add the metric to the lines of some rows of a run; return its values, none without lines."""
    lines = [line for line in read_predictions(run) if line.pop("rows") == name]
    for line in lines:
        line["metrics"] = {
            **line.get("metrics", {}), metric: value(str(line["answer"]), rows[line["row"]])
        }  # fmt: skip
    if lines:
        write_predictions(run, name, lines)
    return [line["metrics"][metric] for line in lines]
