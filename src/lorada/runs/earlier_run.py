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
    """
    source = values.get("from_adapter")
    if not isinstance(source, str):
        return values
    adapter, run = _adapter_and_run(Path(source))
    if run is None:
        return values
    earlier = saved_recipe(run / RECIPE_FILE)
    missing = [name for name in TAKEN_OVER if name not in values]
    taken = {name: getattr(earlier, name) for name in missing if getattr(earlier, name) is not None}
    if taken and is_main_process():
        shown = " ".join(f"{name}={value}" for name, value in taken.items())
        logger.warning("taken over from %s: %s", run, shown)
    return {**values, **taken, "from_adapter": str(adapter)}


def _adapter_and_run(source: Path) -> tuple[Path, Path | None]:
    """The adapter that a folder is or has, and the run that it belongs to; None for no run."""
    if not (source / RECIPE_FILE).is_file():
        saved_by_a_run = (source / "adapter_config.json").is_file()
        saved_by_a_run &= (source.absolute().parent / RECIPE_FILE).is_file()
        return source, source.absolute().parent if saved_by_a_run else None
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
