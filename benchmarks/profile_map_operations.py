"""Profile a training step with a map and one without, by operation, with torch's profiler.

    python benchmarks/profile_map_operations.py --rows 8 --length 128

LoRA with a map on SmolLM2-135M stands beside LoRA alone, after a step that warms up. The line ``the
map, forward`` holds the calls that compute the map's term; its backward pass is in the line of its
autograd function.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from library.training_setup import (
    Batch,
    TrainingSetup,
    bare_model,
    lorada_setup,
    run_step,
    text_batch,
)
from measure_map_costs import Settings, setup_with_map
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from lorada.attention import with_parts

FORWARD, BACKWARD = "the map, forward", "_AddTermBackward"
SHOWN, STEPS = 12, 3

# By operation, per step: calls, milliseconds with and without the operations that it calls.
Averages = dict[str, tuple[float, float, float]]


def labelled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function a line of its own in the profile."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(FORWARD):
            return function(*args, **kwargs)

    return run


def profile_steps(setup: TrainingSetup, batch: Batch) -> Averages:
    """Profile some steps."""
    run_step(setup, batch, 1)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for step in range(STEPS):
            run_step(setup, batch, 2 + step)
    return {
        one.key: tuple(
            x / STEPS for x in (one.count, one.cpu_time_total / 1e3, one.self_cpu_time_total / 1e3)
        )
        for one in found.key_averages()
    }


def table_of(on: Averages, off: Averages) -> Table:
    """The map's own lines, then the operations whose own time differs most."""
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
        sums = [sum(x[column] for x in averages.values()) for averages in (on, off)]
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
    batch = text_batch(settings.model, settings.data, given.rows, given.length)
    off = profile_steps(lorada_setup("lora", bare_model(settings.model), batch), batch)
    with_parts.add_term = labelled(with_parts.add_term)
    on = profile_steps(setup_with_map(settings, batch), batch)
    print(
        f"{given.rows} × {given.length} tokens, per step. The lines of the map include what it "
        "calls, the others have their own time."
    )
    Console(width=110).print(table_of(on, off))


if __name__ == "__main__":
    main()
