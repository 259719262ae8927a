"""The metadata of a model card that the hub reads: base model, licence, task."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from yaml import YAMLError

from lorada.runs.recipe import Recipe

CARD_FILE = "README.md"
# PEFT's task type → the hub's name of the task.
HUB_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
}
LICENCE = ("license", "license_name", "license_link")


def front_matter(recipe: Recipe, library: str, task_type: str) -> str:
    """The YAML at the top of a model card.

    Args:
        recipe: the recipe of the run, whose ``model`` is the base.
        library: the library that loads the folder, ``peft`` or ``transformers``.
        task_type: PEFT's name for the model's task, such as ``CAUSAL_LM``.
    """
    data = ModelCardData(
        library_name=library,
        base_model=recipe.model,
        pipeline_tag=HUB_TASKS[task_type],
        tags=["lorada", recipe.method],
        **licence_of(recipe.model),
    )
    return str(data.to_yaml())


def licence_of(model: str) -> dict[str, Any]:
    """What the card of a model says of its licence; empty if it says nothing or there is none.

    The card is that in the model's folder, or the one that the hub's client has on this machine.
    """
    path: Any = Path(model, CARD_FILE)
    try:
        if not Path(model).is_dir():
            path = try_to_load_from_cache(model, CARD_FILE)
        said = metadata_load(path) if isinstance(path, str | Path) and Path(path).is_file() else {}
    except (HFValidationError, YAMLError, ValueError):  # no id of the hub; a card that is damaged
        return {}
    found = {key: (said or {}).get(key) for key in LICENCE}
    return {key: value for key, value in found.items() if value and isinstance(value, str | list)}


def licence_note(model: str) -> str:
    """A sentence on the licence of what was made from ``model``."""
    said = licence_of(model)
    if not said:
        return (
            f"The licence of {model} was not found on this machine: add it to this card before "
            "you share the folder."
        )
    name = said.get("license_name") or said.get("license")
    shown = ", ".join(name) if isinstance(name, list) else name
    return f"Licence of the base, carried over: {shown}."
