"""What a training takes over from the run that ``--from`` names; without torch."""

import logging
from pathlib import Path
from typing import Any

from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.support.processes import is_main_process

logger = logging.getLogger(__name__)

# What an adapter was trained with, and so is trained on with, unless something else is said: its
# base, and how that reads rows. Rates, steps and rows are of each training anew.
TAKEN_OVER = (
    "method", "model", "quantization", "rope_factor", "pooling", "languages", "columns",
    "max_length", "max_target_length", "loss_on",
)  # fmt: skip


def followed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe, with those of the run that it starts from where they are not given.

    A run in ``from_adapter`` becomes its adapter. A line says what was taken over.

    Args:
        values: fields of a recipe by name, only those that were given.

    Raises:
        ValueError: for a run that has no adapter.
    """
    source = values.get("from_adapter")
    if not isinstance(source, str):
        return values
    adapter, run = _adapter_and_run(Path(source))
    if run is None:
        return values
    earlier = saved_recipe(run / RECIPE_FILE)
    taken_over = {}
    for name in TAKEN_OVER:
        value = getattr(earlier, name)
        if name not in values and value is not None:
            taken_over[name] = value
    if taken_over and is_main_process():
        settings = " ".join(f"{name}={value}" for name, value in taken_over.items())
        logger.warning("taken over from %s: %s", run, settings)
    return {**values, **taken_over, "from_adapter": str(adapter)}


def _adapter_and_run(source: Path) -> tuple[Path, Path | None]:
    """The adapter that a folder is or has, and the run that it belongs to; None for no run.

    An adapter that no run of lorada has made, such as one saved by PEFT, has none.

    Raises:
        ValueError: for a run that has trained the base itself, or has no adapter yet.
    """
    if not (source / RECIPE_FILE).is_file():
        # It may be the adapter or a checkpoint in the folder of a run.
        run = source.absolute().parent
        is_adapter = (source / "adapter_config.json").is_file()
        if is_adapter and (run / RECIPE_FILE).is_file():
            return source, run
        return source, None
    if (source / "adapter").is_dir():
        return source / "adapter", source
    if (source / "model").is_dir():
        raise ValueError(
            f"--from {source}: this run trained the base itself and has no adapter: give "
            f"--model {source / 'model'} in place of --from"
        )
    raise ValueError(
        f"--from {source}: this run has no adapter yet: finish it (lorada train --resume --output "
        f"{source}), or give a checkpoint of it"
    )
