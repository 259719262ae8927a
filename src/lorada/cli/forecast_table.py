"""The table of what a comparison would take, for ``lorada compare --dry-run``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Column, Table

from lorada.cli.shared import console
from lorada.support.in_words import duration

if TYPE_CHECKING:
    from lorada.compare.forecast import CandidateForecast, Forecast


def show_forecast(estimate: "Forecast", costs_of: Callable[[float], str]) -> None:
    """Print the table of candidates, the trainings of each stage, and what all of it takes.

    ``costs_of`` says what some seconds cost; it is empty without a price.
    """
    names = ("method", "budget", "sizes", "parameters", "runs", "time", "memory")
    table = Table(*(Column(name, overflow="fold") for name in names), title="Each at most")
    for candidate in estimate.candidates:
        table.add_row(*_forecast_cells(candidate))
    console.print(table)
    for name, stage in estimate.stages.items():
        if not stage.trainings:
            continue
        at_most = f"{stage.trainings:.0f} ({duration(stage.seconds / estimate.slots)})"
        probably = f"{stage.probably:.0f} ({duration(stage.probably_seconds / estimate.slots)})"
        if at_most == probably:
            console.print(f"Trainings for the {name}: {at_most}")
        else:
            console.print(f"Trainings for the {name}: probably {probably}, at most {at_most}")
    probably = duration(estimate.probably_seconds) + costs_of(estimate.probably_seconds)
    at_most = duration(estimate.seconds) + costs_of(estimate.seconds)
    console.print(
        f"{estimate.steps} steps each, {estimate.slots} at once: probably {probably}, at most "
        f"{at_most}. Times are those of a few steps with the longest rows; the start of each "
        "process, mostly the loading of the model, and the scoring come on top."
    )


def _forecast_cells(forecast: "CandidateForecast") -> list[str]:
    """A line of the table; of a candidate that cannot be run the reason stands for its sizes."""
    from lorada.compare.stored_plan import as_given

    candidate = forecast.candidate
    budgets = []
    for budget, is_above in candidate.budgets.items():
        budgets.append(f"{budget} (above)" if is_above else budget)
    cells = [candidate.method, ", ".join(budgets)]
    if forecast.costs is None or forecast.seconds is None:
        return [*cells, str(candidate.reason)]
    return [
        *cells,
        as_given(candidate.parts),
        f"{candidate.trainable:,} ({candidate.percent:.3f}%)",
        str(forecast.runs),
        duration(forecast.seconds),
        f"{forecast.costs.peak_memory_bytes / 2**30:.1f} GiB",
    ]
