"""Options that several commands share: where jobs run, which part of them, names with commas."""

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


def split_names(option: str, text: str | None) -> list[str] | None:
    """Split names at commas.

    Raises:
        ValueError: if there are none.
    """
    if text is None:
        return None
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError(f"--{option} {text!r} has no name in it: leave it out, or name some")
    return found


def split_seeds(text: str | None) -> list[int] | None:
    """Split seeds at commas."""
    from lorada.runs.recipe import refuse_seed

    try:
        found = None if text is None else [int(name) for name in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds {text} must be whole numbers with commas") from error
    for seed in found or []:
        refuse_seed("--seeds ", seed)
    return found
