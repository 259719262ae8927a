"""The pick at smaller scales of its adapter: how much of the gain stays, and how much less is lost.

It is only scored, on the held-out rows and on the rows to keep; nothing is trained.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from lorada.compare.jobs.job import SCORING, Job, report
from lorada.compare.kept import Keep, losses_of, paths_read, read_again
from lorada.compare.read_results import CandidateResult
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.spec import Comparison
from lorada.compare.stored_losses import LossesAtScale, ScaledRun
from lorada.compare.stored_plan import ComparisonPlan
from lorada.inference.adapter_scale import scaled_adapter, why_no_scale
from lorada.inference.evaluate import answer_scaled
from lorada.inference.load import load_run
from lorada.runs.folder import SCALED_FILE
from lorada.runs.recipe import Recipe
from lorada.support.files import json_text, write_atomic

SCALES = (0.5, 0.75)


def jobs_of_pick(
    comparison: Comparison, plan: ComparisonPlan, folder: Path, summary: Summary
) -> list[Job]:
    """The jobs that are left to score the pick at smaller scales, where it loses something."""
    lost = summary.retention.of(summary.best).lost
    if lost is None or lost.low <= 0:
        return []
    (pick,) = (line.result for line in summary.lines if line.label == summary.best)
    jobs = scale_jobs(comparison, plan, folder, pick)
    return [job for job in jobs if not job.done()]


def scale_jobs(
    comparison: Comparison, plan: ComparisonPlan, folder: Path, pick: CandidateResult
) -> list[Job]:
    """A job for each run of the pick, which scores it at smaller scales."""
    jobs = []
    for run in pick.runs:
        place = folder / run.folder
        work = partial(score_scaled, place, comparison.shared_recipe, Keep.of(comparison, plan))
        jobs.append(
            Job(
                name=f"{pick.candidate.name} seed {run.seed} at smaller scales",
                work=work,
                folder=place,
                done=(place / SCALED_FILE).is_file,
                reads=paths_read(comparison),
                trainings=0.0,
            )
        )
    return jobs


def score_scaled(run_folder: Path, recipe: Recipe, keep: Keep) -> None:
    """Score a run at smaller scales of its adapter, and write ``scaled.json``.

    ``recipe`` has what all runs share: where benchmarks lie, the metric, and whether code of a
    repository may run.
    """
    report(SCORING)
    run = load_run(run_folder, trust_remote_code=recipe.trust_remote_code)
    first_rows = next(iter(read_again(run, keep).values()))
    reason = why_no_scale(run, first_rows)
    at = []
    for scale in SCALES if not reason else ():
        with scaled_adapter(run.model, scale):
            answer_scaled(run, scale, recipe.data_dir, recipe.metric)
            at.append(LossesAtScale(scale, losses_of(run, keep)))
    scaled = ScaledRun(at, reason)
    write_atomic(run_folder / SCALED_FILE, json_text(asdict(scaled)) + "\n")
