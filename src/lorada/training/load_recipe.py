"""Recipes from YAML files, ``key=value`` overrides and options of commands.

A key names a field of the recipe, of one part of the method (``lmam.rank``), or of transformers'
TrainingArguments (``training.learning_rate``). The prefix may be left out if only one of them has a
field of that name.

``read_recipe`` reads all this once and checks what needs neither torch nor PEFT, so that a command
answers a mistake at once; ``Asked.complete`` checks the values for parts and TrainingArguments.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.tasks import TASKS
from lorada.methods.check_overrides import TRAINING, checked, owner_of, refuse_unknown
from lorada.methods.lookup import method_named
from lorada.runs.earlier_run import followed
from lorada.runs.recipe import (
    REMOTE,
    SEEDS,
    Recipe,
    builtin_recipes,
    read_yaml,
    recipe_of,
    refuse_seed,
    refuse_unstorable,
    settings_in,
)
from lorada.support.error_messages import unknown_name

# Fields that are not themselves sections of settings.
PLAIN = Recipe.model_fields.keys() - {"parts", TRAINING}


@dataclass(frozen=True)
class Asked:
    """A recipe as it was asked for; ``recipe`` has its own fields, checked."""

    recipe: Recipe
    settings: list[tuple[str, str, Any]]  # of parts and training: section, name, value

    @property
    def last(self) -> dict[tuple[str, str], Any]:
        """The settings by section and name: the last of several counts."""
        return {(section, name): value for section, name, value in self.settings}

    def complete(self) -> Recipe:
        """The whole recipe, its settings checked against PEFT's and transformers' classes."""
        found: dict[str, dict[str, Any]] = {TRAINING: {}}
        for (section, name), given in self.last.items():
            value = checked(section, name, given)
            refuse_unstorable(name if section == TRAINING else f"{section}.{name}", value)
            found.setdefault(section, {})[name] = value
        update = {TRAINING: found.pop(TRAINING), "parts": found}
        return self.recipe.model_copy(update=update)


def load_recipe(source: str | None, overrides: list[str], options: dict[str, Any]) -> Recipe:
    """Make a recipe from a file or built-in name, ``key=value`` strings and command-line options.

    Args:
        source: path of a YAML file, or the name of a built-in recipe; None to start empty. A file
            cannot switch ``trust_remote_code`` on; only an override or an option can.
        overrides: ``key=value``; the value is read as YAML.
        options: recipe fields given as command-line options; None values are left out.
    """
    return read_recipe(source, overrides, options).complete()


def read_recipe(source: str | None, overrides: list[str], options: dict[str, Any]) -> Asked:
    """What ``load_recipe`` is given, checked as far as that needs neither torch nor PEFT."""
    given = _settings_of(source) if source is not None else {}
    asked = given.pop(REMOTE, False)
    given.update({key: value for key, value in options.items() if value is not None})
    pairs = [*given.items(), *map(_split, overrides)]
    last = dict(pairs)
    if asked is not False and REMOTE not in last:
        raise ValueError(
            f"{source} says {REMOTE}={asked!r}, and code of a model's repository runs only if you "
            f"say so: add {REMOTE}=true to the command, or {REMOTE}=false to go without"
        )
    values = followed({key: value for key, value in last.items() if key in PLAIN})
    # Which keys there are depends on the method.
    method = method_named(str(values.get("method", Recipe.model_fields["method"].default)))
    recipe = recipe_of(values)
    for name in recipe.tasks:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    others = [(key, value) for key, value in pairs if key not in PLAIN]
    settings = _by_section(others, list(method.part_names))
    found = Asked(recipe, settings)
    for (section, name), value in found.last.items():
        if section == TRAINING and name in SEEDS:
            refuse_seed(f"{TRAINING}.{name}=", value)
    return found


def _by_section(settings: list[tuple[str, Any]], parts: list[str]) -> list[tuple[str, str, Any]]:
    """Each setting with its section, in full: of ``lmam.rank``, ``rank`` or ``lmam={…}``."""
    sections, found, waiting = [*parts, TRAINING], list[tuple[str, str, Any]](), list(settings)
    while waiting:
        key, value = waiting.pop(0)
        section, dot, name = key.partition(".")
        if key in (*sections, "parts"):
            if not isinstance(value, dict | None):
                raise ValueError(f"{key}={value!r} is a section: write {key}.NAME=…")
            if key == "parts" and (unknown := [n for n in value or {} if n not in parts]):
                raise unknown_name("part", unknown[0], parts)
            before = "" if key == "parts" else f"{key}."
            waiting[:0] = [(f"{before}{inner}", one) for inner, one in (value or {}).items()]
        elif not dot:
            found.append((owner_of(key, sections, also=PLAIN), key, value))
        elif section in sections:
            refuse_unknown(section, name)
            found.append((section, name, value))
        else:
            raise unknown_name("override", key, [f"{each}.…" for each in sections])
    return found


def _settings_of(source: str) -> dict[str, Any]:
    recipes = builtin_recipes()
    path = recipes.get(source, Path(source))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or os.sep in source:
            raise FileNotFoundError(f"no recipe at {path}")
        error = unknown_name("recipe", source, recipes)
        raise ValueError(f"{error}; a file is NAME.yaml, and a setting key=value")
    return settings_in(path)


def _split(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not key=value")
    return key.strip(), read_yaml(text, f"the value of {override!r}")
