"""Which finished runs can answer together: several adapters on one copy of a base's weights."""

import os
from collections.abc import Sequence
from pathlib import Path

from lorada.runs.folder import finished_run, trains_base
from lorada.runs.recipe import Recipe
from lorada.runs.result import read_result, refuse_no_text
from lorada.support.row_sources import HEADED

# Settings of a recipe that change the base itself.
OF_BASE = ("base_dtype", "quantization", "attn_implementation", "rope_factor")


def writers(folders: Sequence[Path]) -> Recipe:
    """The recipe of the first of several finished runs, which all write text on one base."""
    recipes = [finished_run(folder) for folder in folders]
    for folder in folders:
        result = read_result(folder)
        refuse_no_text(folder, result["form"], result["labels"])
    adapter_names(folders)
    refuse_different_bases(folders)
    return recipes[0]


def to_serve(folders: Sequence[Path]) -> tuple[Recipe, bool]:
    """The recipe of the first of several finished runs, and whether they label, score or choose.

    All do, or all write text on one base.
    """
    recipes = [finished_run(folder) for folder in folders]
    adapter_names(folders)
    asked = [read_result(folder)["form"] in (*HEADED, "choice") for folder in folders]
    if len(set(asked)) > 1:
        one, other = folders[asked.index(True)], folders[asked.index(False)]
        raise ValueError(
            f"{one} labels, scores or chooses and {other} writes text: serve each alone"
        )
    if not asked[0]:
        refuse_different_bases(folders)
    return recipes[0], asked[0]


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
    recipe, weights = finished_run(first), read_result(first).get("base_sha256")
    for folder in others:
        other, also = finished_run(folder), read_result(folder).get("base_sha256")
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
