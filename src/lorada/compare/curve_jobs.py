"""The trainings of the pick on fewer rows, for ``--curve``; ``curve.py`` reads what they scored."""

from lorada.compare.curve import CURVE_SEEDS, HALVINGS, place_of, seeds_of
from lorada.compare.jobs.job import Job
from lorada.compare.read_results import Results
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import ComparisonPlan
from lorada.compare.trainings import curve_job
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import half_of, head_of


def check_curve(comparison: Comparison, train: Rows, batch: int) -> None:
    """Refuse a curve that cannot be measured, before anything is trained.

    Args:
        comparison: which asks for the curve.
        train: its training rows.
        batch: rows of a device in a step: with fewer rows than that, steps would differ too.

    Raises:
        ValueError: for fewer than two seeds, or too few rows for a quarter of them.
    """
    if len(comparison.seeds) < CURVE_SEEDS:
        raise ValueError(
            f"--curve needs two seeds of each method, and --seeds has {comparison.seeds[0]} alone: "
            "pass another one, or leave out --curve"
        )
    part = train
    for _ in HALVINGS:
        if len(part.rows) < 2 * batch:
            raise ValueError(
                f"--curve trains on a quarter of the training rows, and {len(train.rows)} are too "
                f"few for a quarter that fills a step of {batch}: give {4 * batch} rows or more, "
                "or leave out --curve"
            )
        part = half_of(part)
    head_of(part)  # which refuses rows with nothing to tell apart


def curve_jobs(
    comparison: Comparison, plan: ComparisonPlan, results: Results, best: str
) -> list[Job]:
    """The runs of the pick on fewer rows that are not done; none without a pick of two seeds."""
    place = place_of(results, best)
    if place is None:
        return []
    seeds = seeds_of(results.candidates[place])
    jobs = []
    for halvings in HALVINGS:
        for seed in seeds:
            candidate = plan.candidates[place]
            job = curve_job(comparison, plan, candidate, results.folder, seed, halvings)
            if not job.done():
                jobs.append(job)
    return jobs
