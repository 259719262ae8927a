"""Where the time of a training step with a map goes, by torch's profiler.

    python benchmarks/profile_step.py --rows 8 --length 128

LoRA with a map on SmolLM2-135M, one step after one that is a warm-up. ``the map, forward`` is what
a call of the term took; its backward pass is in the line of its own autograd function.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from costs import Options, text_batch, timed
from performance import Settings, with_map
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from lorada import attention

FORWARD, BACKWARD = "the map, forward", "_AddedBackward"
SHOWN = 12


def labelled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a name of its own in the profile."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(FORWARD):
            return function(*args, **kwargs)

    return run


def profiled(rows: int, length: int, settings: Settings) -> Any:
    """The averages of a step's operations."""
    batch = text_batch(Options(settings.model, settings.data, length=length), rows)
    side = with_map(settings, batch)
    timed(side, batch, 1)
    attention.add_term = labelled(attention.add_term)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        timed(side, batch, 2)
    return found.key_averages()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args()
    settings = Settings()
    torch.set_num_threads(settings.threads)
    averages = profiled(given.rows, given.length, settings)
    total = sum(one.self_cpu_time_total for one in averages)
    table = Table("operation", "calls", "milliseconds", "percent")
    inclusive = [one for one in averages if one.key in (FORWARD, BACKWARD)]
    own = sorted(averages, key=lambda one: -one.self_cpu_time_total)[:SHOWN]
    for one, time in [*((x, x.cpu_time_total) for x in inclusive),
                      *((x, x.self_cpu_time_total) for x in own)]:  # fmt: skip
        share = f"{100 * time / total:.2f}"
        table.add_row(one.key[:60], str(one.count), f"{time / 1000:.1f}", share)
    Console(width=100).print(table)
    print(f"{given.rows} × {given.length} tokens, {total / 1000:.0f} ms in all operations")


if __name__ == "__main__":
    main()
