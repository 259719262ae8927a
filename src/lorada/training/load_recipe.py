"""Recipes from YAML files, ``key=value`` overrides and options of commands.

A key names a field of the recipe, of one part of the method (``lmam.rank``), or of transformers'
TrainingArguments (``training.learning_rate``). The prefix may be left out if only one of them has a
field of that name.
"""

import os
from pathlib import Path
from typing import Any

from lorada.data.tasks import TASKS
from lorada.methods.lookup import method_named
from lorada.methods.overrides import TRAINING, checked, owner_of
from lorada.runs.plain_yaml import read_yaml
from lorada.runs.recipe import (
    REMOTE,
    SEED,
    SEEDS,
    Recipe,
    builtin_recipes,
    recipe_of,
    refuse_seed,
    settings_in,
)
from lorada.support.errors import unknown_name
from lorada.support.row_sources import files_of, hub_source, resolve
from lorada.training.models.names import check_name

# Fields that are not themselves sections of settings.
PLAIN = Recipe.model_fields.keys() - {"parts", TRAINING}


def _given_settings(
    source: str | None, overrides: list[str], options: dict[str, Any]
) -> list[tuple[str, Any]]:
    """Keys and values as given to ``load_recipe``; later ones override earlier ones.

    They are not checked here, because that needs transformers and PEFT.
    """
    settings = _read_yaml(source) if source is not None else {}
    asked = settings.pop(REMOTE, False)
    settings.update({key: value for key, value in options.items() if value is not None})
    pairs = [*settings.items(), *map(_split, overrides)]
    if asked is not False and REMOTE not in dict(pairs):
        raise ValueError(
            f"{source} says {REMOTE}={asked!r}, and code of a model's repository runs only if you "
            f"say so: add {REMOTE}=true to the command, or {REMOTE}=false to go without"
        )
    return pairs


def load_recipe(
    source: str | None,
    overrides: list[str],
    options: dict[str, Any],
    *,
    name_output: bool = False,
) -> Recipe:
    """Make a recipe from a file or built-in name, ``key=value`` strings and command-line options.

    Args:
        source: path of a YAML file, or the name of a built-in recipe; None to start empty. A file
            cannot switch ``trust_remote_code`` on; only an override or an option can.
        overrides: ``key=value``; the value is read as YAML.
        options: recipe fields given as command-line options; None values are left out.
        name_output: if no output is given, make one of tasks or data, method and seed.

    Raises:
        ValueError: for an unknown key (with the nearest names), an ambiguous key (with the full
            ones), a value of the wrong type (with the field, the value and the type), a file that
            is no YAML mapping, or one that asks for remote code when the command does not.
        FileNotFoundError: if there is no such file.
    """
    pairs = _given_settings(source, overrides, options)
    parts = _part_names(dict(pairs))  # which keys there are depends on the method
    values: dict[str, Any] = {"parts": {}, TRAINING: {}}
    for key, value in pairs:
        _assign(values, parts, key, value)
    for name in SEEDS:
        refuse_seed(f"training.{name}=", values[TRAINING].get(name))
    seed = values[TRAINING].get("seed", SEED)
    return _validated(values, seed if name_output else None)


def outline(
    source: str | None, overrides: list[str], options: dict[str, Any], *, name_output: bool = False
) -> Recipe:
    """A recipe without the settings of its parts and its training, made without loading PEFT.

    The arguments are those of ``load_recipe``.
    """
    given = dict(_given_settings(source, overrides, options))
    if isinstance(given.get("model"), str):  # first, since some methods' names need PEFT
        check_name(given["model"], weights=False)
    _part_names(given)  # refuses an unknown method
    training = given.get(TRAINING)
    seed = training.get("seed", SEED) if isinstance(training, dict) else SEED
    seed = given.get("training.seed", given.get("seed", seed))
    if isinstance(seed, int):  # a seed of another type is refused with the reason later
        refuse_seed("training.seed=", seed)
    values = {key: value for key, value in given.items() if key in PLAIN}
    return _validated(values, seed if name_output else None)


def _part_names(given: dict[str, Any]) -> list[str]:
    """The names of the parts of the given method, or of the default method."""
    return method_named(str(given.get("method", Recipe.model_fields["method"].default))).part_names


def _validated(values: dict[str, Any], seed: Any = None) -> Recipe:
    """A recipe of these values; with a seed, its output is named if none is given."""
    if seed is not None and "output" not in values:
        values = {**values, **_named_output(values, seed)}
    recipe = recipe_of(values)
    for name in recipe.tasks:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    return recipe


def _named_output(values: dict[str, Any], seed: Any) -> dict[str, str]:
    """``output=runs/TASK-METHOD-seedN``; empty if neither a task nor data is given."""
    method, task = (values.get(key, Recipe.model_fields[key].default) for key in ("method", "task"))
    names = [name.strip() for name in str(task).split(",")]
    if task == Recipe.model_fields["task"].default:
        if not values.get("data"):
            return {}
        files = files_of(values["data"])
        found = [Path(source[0]) if (source := hub_source(f)) else resolve(f) for f in files]
        names = [Path(path.name.removesuffix(".gz")).stem for path in found]
    return {"output": f"runs/{'-'.join(names)}-{method}-seed{seed}"}


def _read_yaml(source: str) -> dict[str, Any]:
    recipes = builtin_recipes()
    path = recipes.get(source, Path(source))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or os.sep in source:
            raise FileNotFoundError(f"no recipe at {path}")
        raise unknown_name("recipe", source, recipes)
    return settings_in(path)


def _split(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not key=value")
    return key.strip(), read_yaml(text, f"the value of {override!r}")


def _assign(values: dict[str, Any], parts: list[str], key: str, value: Any) -> None:
    """Set one key: ``lmam.rank``, its short form ``rank``, or ``lmam`` with a mapping as value."""
    sections = [*parts, TRAINING]
    if key in (*sections, "parts"):
        if not isinstance(value, dict | None):
            raise ValueError(f"{key}={value!r} is a section: write {key}.NAME=…")
        for name, inner in (value or {}).items():
            if key == "parts":
                if name not in parts:
                    raise unknown_name("part", name, parts)
                _assign(values, parts, name, inner)
            else:
                _set(values, key, name, inner)
        return
    if key in Recipe.model_fields:
        values[key] = value
        return
    section, dot, name = key.partition(".")
    if dot:
        if section not in sections:
            raise unknown_name("override", key, [f"{s}.…" for s in sections])
        _set(values, section, name, value)
        return
    _set(values, owner_of(key, sections, also=PLAIN), key, value)


def _set(values: dict[str, Any], section: str, name: str, value: Any) -> None:
    owner = values[TRAINING] if section == TRAINING else values["parts"].setdefault(section, {})
    owner[name] = checked(section, name, value)
