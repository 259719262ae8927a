"""Options that several commands share: where jobs run, which part of them, names with commas."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import typer

from lorada.support.errors import needs_extra

AUTO = "auto"
Number = TypeVar("Number", int, float)

Workers = Annotated[
    str, typer.Option(help="how many runs at once; auto: one for each GPU, and one without a GPU")
]
GpusPerJob = Annotated[
    float, typer.Option(help="GPUs that a run has: 2, or 0.25 for four runs on each GPU")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be run")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with what is there already")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="delete what is there first")]
Cluster = Annotated[str | None, typer.Option(help="run on a Ray cluster: auto, or ray://HOST:PORT")]
Shard = Annotated[
    str | None, typer.Option(help="i/n: only the i-th of n parts of the runs, for job arrays")
]


def check_queue(
    workers: str, gpus_per_job: float, cluster: str | None, shard: str | None
) -> tuple[Callable[[], Any], tuple[int, int] | None]:
    """Check the options.

    Returns:
        What makes the pool for the jobs, and the part that ``--shard i/n`` asks for as (i, n).
    """
    if workers != AUTO and not (workers.isdecimal() and int(workers)):
        raise ValueError(f"--workers {workers} must be auto, or a number of at least 1")
    if cluster is not None and workers != AUTO:
        raise ValueError("--workers and --cluster exclude each other")
    parts = 1 / gpus_per_job if 0 < gpus_per_job < 1 else gpus_per_job
    if gpus_per_job <= 0 or abs(parts - round(parts)) > 0.01:
        raise ValueError(
            f"--gpus-per-job {gpus_per_job:g} must be a whole number, or a whole part of 1 such as "
            "0.25"
        )
    count = None if workers == AUTO else int(workers)
    part = None
    if shard is not None:
        i, _, n = shard.partition("/")
        if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
            raise ValueError(f"--shard {shard} must be i/n with i from 1 to n, such as 1/4")
        part = int(i), int(n)
    return partial(pool_of, count, cluster, gpus_per_job), part


def pool_of(count: int | None, cluster: str | None, gpus_per_job: float) -> Any:
    """The pool that options ask for: of this machine, or of a Ray cluster."""
    if cluster is None:
        from lorada.compare.jobs.pool import Workers as Pool

        return Pool(count, gpus_per_job)
    with needs_extra("cluster"):
        from lorada.compare.jobs.ray_pool import RayPool

    return RayPool(cluster, gpus_per_job)


def split_names(option: str, text: str | None) -> list[str] | None:
    """Split names at commas."""
    if text is None:
        return None
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError(f"--{option} {text!r} has no name in it: leave it out, or name some")
    return found


def split_numbers(
    option: str, text: str | None, kind: Callable[[str], Number], what: str
) -> list[Number] | None:
    """Split numbers at commas; ``what`` says what they must be."""
    found = split_names(option, text)
    try:
        return None if found is None else [kind(name) for name in found]
    except ValueError as error:
        raise ValueError(f"--{option} {text} must be {what}") from error


def split_seeds(text: str | None) -> list[int] | None:
    """Split seeds at commas."""
    from lorada.runs.recipe import refuse_seed

    found = split_numbers("seeds", text, int, "whole numbers with commas")
    for seed in found or []:
        refuse_seed("--seeds ", seed)
    return found
