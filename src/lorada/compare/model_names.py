"""The names of the models of one comparison, and the folder that each has; needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from lorada.support.models import published_name
from lorada.support.row_sources import files_of

MODELS_FILE = "models.yaml"  # in the folder on top: name of a model → its folder there


def models_in(model: str) -> list[str]:
    """The names in ``a,b,c``; a folder may have a comma in its own name."""
    return [name for name in files_of(model) if name]


def folders_of_models(models: Sequence[str]) -> dict[str, str]:
    """Model → the name of its folder: the last part of its name, or all of it where two share that.

    Raises:
        ValueError: for a model that is named twice, perhaps by its short name and its id.
    """
    published: set[str] = set()
    for model in models:
        if published_name(model) in published:
            raise ValueError(f"--model names {model} twice: leave one out")
        published.add(published_name(model))
    last_parts = [Path(model).name for model in models]
    folders = {}
    for model, last_part in zip(models, last_parts, strict=True):
        is_unique = last_parts.count(last_part) == 1
        folders[model] = last_part if is_unique else model.strip("/").replace("/", "--")
    return folders
