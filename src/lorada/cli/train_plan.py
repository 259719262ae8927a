"""What ``lorada train --dry-run`` prints: what would be trained, and the memory of a step."""

import logging
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
    from lorada.runs.training.checkpointing import recomputes

    prepared = prepare_training(recipe)
    counts = parameters_of(recipe)
    chosen = "full" if recomputes(recipe, prepared.config) else "off"
    sizes, reason = _step_bytes(prepared)
    if as_json:
        print_json({
            "method": recipe.method, "model": recipe.model, "output": recipe.output,
            "rows": len(prepared.rows.rows), **counts,
            "activation_checkpointing": chosen, "step_bytes": sizes,
        })  # fmt: skip
        return
    table = Table("method", "model", "rows", "trained", "100 p/N", "output")
    table.add_row(
        recipe.method, recipe.model, f"{len(prepared.rows.rows):,}", f"{counts['trainable']:,}",
        f"{counts['percent']:.4f}%", recipe.output,
    )  # fmt: skip
    console.print(table)
    need = f"the memory of a step cannot be computed ({reason})"
    if sizes is not None:
        each = (f"{size / 2**30:,.2f} GiB with {name}" for name, size in sizes.items())
        need = f"a step needs {', '.join(each)}"
    asked = recipe.activation_checkpointing
    takes = f"{asked} takes {chosen}" if asked == "auto" else asked
    console.print(f"activation_checkpointing={takes}: {need}", highlight=False, soft_wrap=True)


def _step_bytes(prepared: Any) -> tuple[dict[str, float] | None, str]:
    """Bytes of a step by ``activation_checkpointing``; None, and why, if they are not known."""
    from lorada.runs.training.training_memory import memory_of

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the method is placed again, and gives its warnings again
    try:
        return {name: memory_of(prepared, name).total for name in ("off", "full")}, ""
    except Exception as error:  # of any class: a model may do what fake tensors cannot
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        logging.disable(before)
