"""The options of commands that run a queue of jobs: where the jobs run, and which part of them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

Workers = Annotated[int, typer.Option(help="how many runs at once, each in its own process")]
Cluster = Annotated[str | None, typer.Option(help="run on a Ray cluster: auto, or ray://HOST:PORT")]
Shard = Annotated[
    str | None, typer.Option(help="i/n: only the i-th of n parts of the runs, for job arrays")
]


def check_queue(workers: int, cluster: str | None, shard: str | None) -> tuple[int, int] | None:
    """Check the options; return the part that ``--shard i/n`` asks for as (i, n).

    Raises:
        ValueError: for an impossible value, or options that exclude each other.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    if cluster is not None and workers > 1:
        raise ValueError("--workers and --cluster exclude each other")
    if shard is None:
        return None
    i, _, n = shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ValueError(f"--shard {shard} must be i/n with i from 1 to n, such as 1/4")
    return int(i), int(n)


def check_outcomes(outcomes: Mapping[str, Any], report: Callable[[str], None]) -> None:
    """Say which jobs of a queue (name → ``Outcome``) are held, and which failed and why.

    Raises:
        ValueError: if any failed.
    """
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    held = sum(outcome.status == "held" for outcome in outcomes.values())
    if held:
        report(f"{held} of {len(outcomes)} jobs are held by other processes, which finish them")
    for name in failed:
        report(f"{name} failed: {outcomes[name].error}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} jobs failed; --resume runs them again, and only them"
        )
