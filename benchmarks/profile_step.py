"""What a map adds to the operations of a training step, by torch's profiler.

    python benchmarks/profile_step.py --rows 8 --length 128

LoRA with a map on SmolLM2-135M beside LoRA alone, after a step that is a warm-up. ``the map,
forward`` is what the calls of the term took; their backward pass is in the line of their own
autograd function.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from costs import Options, text_batch, timed
from performance import Settings, with_map
from rich.console import Console
from rich.table import Table
from sides import Batch, Side, bare_base, ours
from torch.profiler import ProfilerActivity, profile, record_function

from lorada.attention import attend

FORWARD, BACKWARD = "the map, forward", "_AddTermBackward"
SHOWN, STEPS = 12, 3

# By operation: calls, milliseconds within it, and milliseconds of its own, a step.
Averages = dict[str, tuple[float, float, float]]


def labelled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a name of its own in the profile."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(FORWARD):
            return function(*args, **kwargs)

    return run


def profiled(side: Side, batch: Batch) -> Averages:
    """The averages of some steps."""
    timed(side, batch, 1)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for step in range(STEPS):
            timed(side, batch, 2 + step)
    return {
        one.key: tuple(
            x / STEPS for x in (one.count, one.cpu_time_total / 1e3, one.self_cpu_time_total / 1e3)
        )
        for one in found.key_averages()
    }


def table_of(on: Averages, off: Averages) -> Table:
    """The map's own lines, then what differs most."""
    table = Table("operation", "calls with a map", "without", "ms with a map", "without")
    none = (0.0, 0.0, 0.0)
    inclusive = [(key, 1) for key in (FORWARD, BACKWARD) if key in on]
    gaps = {key: on.get(key, none)[2] - off.get(key, none)[2] for key in {**on, **off}}
    own = [(key, 2) for key in sorted(gaps, key=lambda key: -abs(gaps[key]))[:SHOWN]]
    for key, column in inclusive + own:
        one, other = on.get(key, none), off.get(key, none)
        calls = [f"{x[0]:.0f}" for x in (one, other)]
        table.add_row(key[:50], *calls, *(f"{x[column]:.1f}" for x in (one, other)))
    for name, column in (("calls of all operations", 0), ("all operations", 2)):
        sums = [sum(x[column] for x in side.values()) for side in (on, off)]
        cells = [f"{x:.0f}" for x in sums]
        table.add_row(name, *(["", "", *cells] if column else [*cells, "", ""]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args()
    settings = Settings()
    torch.set_num_threads(settings.threads)
    batch = text_batch(Options(settings.model, settings.data, length=given.length), given.rows)
    off = profiled(ours("lora", bare_base(settings.model), batch), batch)
    attend.add_term = labelled(attend.add_term)
    on = profiled(with_map(settings, batch), batch)
    print(f"{given.rows} × {given.length} tokens, a step; inclusive first, then own times:")
    Console(width=110).print(table_of(on, off))


if __name__ == "__main__":
    main()
