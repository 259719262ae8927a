"""The command ``decide``: which method to take, from scores of any trainer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lorada.cli.app import Json, app, console, print_json, suggest
from lorada.cli.compare_command import Margin


@app.command()
def decide(
    scores: Annotated[Path, typer.Argument(help="CSV: method, seed, row, score; maybe group")],
    margin: Margin = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="scores are losses or errors")
    ] = False,
    costs: Annotated[
        Path | None, typer.Option(help="YAML or JSON: method → parameters, seconds, bytes")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="a name in the file that is a score without training; may be repeated"),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="of the scores; else % where they fit")] = None,
    as_json: Json = False,
) -> None:
    """Decide which method to take, from scores of any trainer."""
    from lorada.compare.decide import decide as decided
    from lorada.compare.score_file import read_costs, read_scores
    from lorada.support.errors import unknown_name

    read = read_scores(scores)
    without = {}
    for name in baseline or []:
        if name not in read.scores:
            raise unknown_name("--baseline", name, read.scores)
        without[name] = read.scores.pop(name).mean(axis=0)
    seeds = {name: one for name, one in read.seeds.items() if name in read.scores}
    given = read_costs(costs) if costs else {}
    found = decided(
        read.scores, given, margin, lower_is_better=lower_is_better, groups=read.groups,
        baselines=without, seeds=seeds, unit=unit,
    )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return
    console.print(found.sentence, highlight=False, markup=False)
    table = Table("method", "runs", "score", "95 % confidence interval", "expected loss")
    form = ".1f" if found.unit == "%" else ".4g"
    best_first = sorted(found.scores.items(), key=lambda one: one[1], reverse=not lower_is_better)
    for name, score in best_first:
        low, high = found.intervals[name]
        loss = found.expected_loss.get(name)
        table.add_row(
            name, str(found.runs[name]), format(score, form), f"{low:{form}} to {high:{form}}",
            "—" if loss is None else f"{loss:.2g}",
        )  # fmt: skip
    console.print(table)
    suggest("decide", scores, "--json")
