"""Checks that the adapters of several runs belong on one base, as `chat` and `serve` need it."""

import os
from collections.abc import Sequence
from pathlib import Path

from lorada.runs.folder import trains_base
from lorada.runs.recipe import RECIPE_FILE, REMOTE
from lorada.runs.result import read_result
from lorada.training.load_recipe import outline

# Settings of a recipe that change the base itself.
OF_BASE = ("base_dtype", "quantization", "attn_implementation", "rope_factor")


def refuse_different_bases(folders: Sequence[Path]) -> None:
    """Refuse finished runs that cannot answer with one copy of a base model's weights."""
    first, *others = folders
    if not others:
        return
    for folder in folders:
        if trains_base(folder):
            raise ValueError(
                f"{folder} trained the base model itself, so it shares no base with another run: "
                "take it alone"
            )
    of_all = [outline(str(folder / RECIPE_FILE), [], {REMOTE: False}) for folder in folders]
    recipe, weights = of_all[0], read_result(first).get("base_sha256")
    for folder, other in zip(others, of_all[1:], strict=True):
        also = read_result(folder).get("base_sha256")
        if weights != also if weights and also else recipe.model != other.model:
            raise ValueError(
                f"{first} was trained on {recipe.model} and {folder} on {other.model}, and several "
                "runs must share one base: take each alone"
            )
        for name in OF_BASE:
            here, there = getattr(recipe, name), getattr(other, name)
            if here != there:
                name = name.removeprefix("base_")
                raise ValueError(
                    f"{first} was trained with {name}={here} and {folder} with {name}={there}, and "
                    "several runs must share one base: take each alone"
                )


def adapter_names(folders: Sequence[Path]) -> list[str]:
    """Names for runs: those of their folders; where two are the same, from what all share on."""
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise ValueError(f"{folders[place]} is given twice: name each run once")
    names = [folder.name for folder in whole]
    shared = os.path.commonpath([folder.parent for folder in whole])
    return [
        folder.relative_to(shared).as_posix() if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]
