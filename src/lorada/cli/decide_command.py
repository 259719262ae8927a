"""The command ``decide``: which method to take, from scores of any trainer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Json, app, console, print_json, suggest
from lorada.cli.compare_command import Margin
from lorada.cli.score_table import Scored, score_table


@app.command()
def decide(
    scores: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="CSV: method, seed, row, score; maybe group"
        ),
    ],
    margin: Margin = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="scores are losses or errors")
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="YAML or JSON: method → parameters, seconds, bytes"
        ),
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
    from lorada.compare.read_scores import read_costs, read_scores
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
    form = ".1f" if found.unit == "%" else ".4g"
    best_first = sorted(found.scores, key=found.scores.__getitem__, reverse=not lower_is_better)
    rows: list[Scored] = [
        (name, found.scores[name], *found.intervals[name], found.expected_loss.get(name),
         found.costs.get(name, {}).get("parameters"), found.mark(name)) for name in best_first
    ]  # fmt: skip
    rows += [(name, score, None, None, None, None, "") for name, score in found.baselines.items()]
    for line in score_table("score", form, rows, console.width):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    suggest("decide", scores, "--json")
