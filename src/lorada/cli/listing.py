"""Commands that list what there is: methods, tasks, recipes; and count parameters."""

from typing import Annotated

import typer
from rich.table import Table

from lorada.cli.app import Json, app, console, print_json, suggest


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods, with what they are."""
    from lorada.methods import METHODS
    from lorada.plan import part_names

    rows = {
        name: {
            "summary": method.summary,
            "parts": part_names(name),
            "families": sorted(method.parts) or ["any"],
            "source": method.source,
        }
        for name, method in METHODS.items()
    }
    if as_json:
        print_json(rows)
        return
    table = Table("method", "what", "parts", "models", "settings from")
    for name, row in rows.items():
        parts = ", ".join(row["parts"]) or "—"
        families = ", ".join(row["families"])
        table.add_row(name, str(row["summary"]), parts, families, str(row["source"]))
    console.print(table)
    console.print("Any method with parts but no map also as NAME+lmam.")
    suggest("lorada params --method lorada_la --model smollm2-135m")


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks."""
    from lorada.tasks import TASKS

    rows = {
        name: {
            "summary": task.summary,
            "benchmark": task.benchmark,
            "protocols": list(task.protocols),
            "train_on": list(task.train),
        }
        for name, task in TASKS.items()
    }
    if as_json:
        print_json(rows)
        return
    table = Table("task", "benchmark", "what", "protocols")
    for name, row in rows.items():
        protocols = ", ".join(row["protocols"])
        table.add_row(name, str(row["benchmark"]), str(row["summary"]), protocols)
    console.print(table)
    suggest("lorada train --model smollm2-135m --data FILE --output runs/mine")


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the built-in recipes."""
    from lorada.run.recipe import builtin_recipes

    rows = {name: str(path) for name, path in builtin_recipes().items()}
    if as_json:
        print_json(rows)
        return
    for name, path in rows.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    suggest("lorada train quickstart")


@app.command()
def params(
    method: Annotated[str, typer.Option(help="see `lorada methods`")],
    model: Annotated[str, typer.Option(help="hub id, folder, or a packaged name")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    as_json: Json = False,
) -> None:
    """Count a method's parameters on a model, without loading weights."""
    from lorada.run.params import count_parameters

    counts = count_parameters(method, model, list(overrides or []))
    if as_json:
        print_json(counts)
        return
    table = Table("trained and saved", "base model", "100 p/N", "100 p/(N+p)")
    table.add_row(
        f"{counts['trainable']:,}",
        f"{counts['total']:,}",
        f"{counts['percent']:.4f}%",
        f"{counts['percent_of_all']:.4f}%",
    )
    console.print(table)
    suggest(f"lorada train --method {method} --model {model} --data FILE --output runs/mine")
