"""What ``lorada train --dry-run`` prints: what would be trained, and the memory of a step."""

from typing import Any

from rich.table import Table

from lorada.cli.app import console, print_json


def show_training(recipe: Any, *, as_json: bool) -> None:
    """Print rows, parameters and memory of a training; no weights are loaded.

    Raises:
        ValueError: as ``prepare_training``.
    """
    from lorada.runs.models.count import parameters_of
    from lorada.runs.prepare import prepare_training
    from lorada.runs.training.checkpointing import choose

    prepared = prepare_training(recipe)
    counts, choice = parameters_of(recipe), choose(prepared)
    if as_json:
        print_json({
            "method": recipe.method, "model": recipe.model, "output": recipe.output,
            "rows": len(prepared.rows.rows), **counts,
            "activation_checkpointing": choice.chosen,
            "step_bytes": choice.sizes, "free_bytes": choice.free,
        })  # fmt: skip
        return
    table = Table("method", "model", "rows", "trained", "100 p/N", "output")
    table.add_row(
        recipe.method, recipe.model, f"{len(prepared.rows.rows):,}", f"{counts['trainable']:,}",
        f"{counts['percent']:.4f}%", recipe.output,
    )  # fmt: skip
    console.print(table)
    console.print(choice.line, highlight=False, soft_wrap=True)
