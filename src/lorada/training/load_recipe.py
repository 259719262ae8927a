"""Recipes from YAML files, ``key=value`` overrides and options of commands.

A key names a field of the recipe, of one part of the method (``lmam.rank``), or of transformers'
TrainingArguments (``training.learning_rate``). The prefix may be left out if only one of them has a
field of that name.

``read_recipe`` reads all this once and checks what needs neither torch nor PEFT, so that a command
answers a mistake at once; ``RecipeDraft.complete`` checks the values for parts and
TrainingArguments.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.tasks import TASKS
from lorada.methods.check_overrides import TRAINING, checked, owner_of, refuse_unknown
from lorada.methods.lookup import allow_methods, method_named
from lorada.runs.earlier_run import followed
from lorada.runs.recipe import (
    REMOTE,
    SEEDS,
    Recipe,
    builtin_recipes,
    recipe_of,
    refuse_seed,
    refuse_unstorable,
    settings_in,
)
from lorada.support.error_messages import unknown_name
from lorada.support.plain_yaml import read_yaml

# The fields of a recipe that are not themselves sections of settings.
PLAIN_FIELDS = Recipe.model_fields.keys() - {"parts", TRAINING}


@dataclass(frozen=True)
class Setting:
    """A setting of a part or of TrainingArguments, its value as it was given."""

    section: str  # a part's name, or ``training``
    name: str
    value: Any


@dataclass(frozen=True)
class RecipeDraft:
    """A recipe whose own fields are checked, and whose settings are not yet."""

    recipe: Recipe  # without parts and training
    settings: list[Setting]

    @property
    def final_settings(self) -> list[Setting]:
        """The settings of which each has one value: the last of several counts."""
        by_name = {(setting.section, setting.name): setting for setting in self.settings}
        return list(by_name.values())

    def complete(self) -> Recipe:
        """The whole recipe, its settings checked against PEFT's and transformers' classes.

        Raises:
            ValueError: for a value that does not fit the type of its setting, or cannot be stored.
        """
        training: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {}
        for setting in self.final_settings:
            section, name = setting.section, setting.name
            value = checked(section, name, setting.value)
            if section == TRAINING:
                refuse_unstorable(name, value)
                training[name] = value
            else:
                refuse_unstorable(f"{section}.{name}", value)
                parts.setdefault(section, {})[name] = value
        return self.recipe.model_copy(update={TRAINING: training, "parts": parts})


def load_recipe(source: str | None, overrides: list[str], options: dict[str, Any]) -> Recipe:
    """Make a recipe from a file or built-in name, ``key=value`` strings and command-line options.

    Args:
        source: path of a YAML file, or the name of a built-in recipe; None to start empty. A file
            cannot switch ``trust_remote_code`` on; only an override or an option can.
        overrides: ``key=value``; the value is read as YAML.
        options: recipe fields given as command-line options; None values are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for unknown names, wrong values, and a file that allows code of a model's
            repository.
    """
    return read_recipe(source, overrides, options).complete()


def read_recipe(source: str | None, overrides: list[str], options: dict[str, Any]) -> RecipeDraft:
    """Collect what ``load_recipe`` gets, checked as far as that needs neither torch nor PEFT.

    The parameters are those of ``load_recipe``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for unknown names, wrong values, and a file that allows code of a model's
            repository.
    """
    from_file = _read_source(source) if source is not None else {}
    # Taken out here: a file alone may not allow this, see below.
    file_allows_code = from_file.pop(REMOTE, False)
    from_options = {key: value for key, value in options.items() if value is not None}
    from_overrides = [_split_override(override) for override in overrides]
    # In this order, as the last of several values of a key counts.
    # A dict, in which options replace values of the file, then overrides.
    pairs = [*{**from_file, **from_options}.items(), *from_overrides]
    last_values = dict(pairs)
    if file_allows_code is not False and REMOTE not in last_values:
        raise ValueError(
            f"{source} says {REMOTE}={file_allows_code!r}, and code of a model's repository runs "
            f"only if you say so: add {REMOTE}=true to the command, or {REMOTE}=false to go without"
        )
    fields = {key: value for key, value in last_values.items() if key in PLAIN_FIELDS}
    fields = followed(fields)  # with what the run of ``from_adapter`` was trained with
    named_now = dict([*from_options.items(), *from_overrides]).get("method")
    if named_now is not None:  # by the user, not by a file
        allow_methods([str(named_now)])
    # Which settings there are depends on the method.
    method = method_named(str(fields.get("method", Recipe.model_fields["method"].default)))
    recipe = recipe_of(fields)
    for name in recipe.tasks:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    other_pairs = [(key, value) for key, value in pairs if key not in PLAIN_FIELDS]
    draft = RecipeDraft(recipe, _with_sections(other_pairs, list(method.part_names)))
    for setting in draft.final_settings:
        if setting.section == TRAINING and setting.name in SEEDS:
            refuse_seed(f"{TRAINING}.{setting.name}=", setting.value)
    return draft


def _with_sections(pairs: list[tuple[str, Any]], part_names: list[str]) -> list[Setting]:
    """The settings that ``key=value`` pairs name, which are without the recipe's plain fields.

    A key is a setting in full (``lmam.rank``), a name that one section alone has (``rank``), a
    section (``lmam={rank: 4}``), or ``parts`` with sections in it.

    Unknown names, names of several sections, and a section that is no mapping are refused.
    """
    sections = [*part_names, TRAINING]
    settings: list[Setting] = []
    for key, value in pairs:
        section, dot, name = key.partition(".")
        if key in (*sections, "parts"):
            if not isinstance(value, dict | None):
                raise ValueError(f"{key}={value!r} is a section: write {key}.NAME=…")
            inner_pairs = _pairs_inside(key, value or {}, part_names)
            settings += _with_sections(inner_pairs, part_names)
        elif not dot:
            settings.append(Setting(owner_of(key, sections, also_known=PLAIN_FIELDS), key, value))
        elif section in sections:
            refuse_unknown(section, name)
            settings.append(Setting(section, name, value))
        else:
            raise unknown_name("override", key, [f"{known}.…" for known in sections])
    return settings


def _pairs_inside(
    section: str, values: dict[str, Any], part_names: list[str]
) -> list[tuple[str, Any]]:
    """The pairs of a section with their keys in full; those of ``parts`` are sections.

    A part that the method does not have is refused.
    """
    if section != "parts":
        return [(f"{section}.{name}", value) for name, value in values.items()]
    for name in values:
        if name not in part_names:
            raise unknown_name("part", name, part_names)
    # ``parts: {lmam: {rank: 4}}`` has sections, which are looked into in their turn.
    return list(values.items())


def _read_source(source: str) -> dict[str, Any]:
    """The settings in a recipe's file, which is named by its path or is built in.

    Raises:
        FileNotFoundError: if the name is that of a file, and there is none.
        ValueError: for an unknown built-in recipe.
    """
    recipes = builtin_recipes()
    path = recipes.get(source, Path(source))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or os.sep in source:
            raise FileNotFoundError(f"no recipe at {path}")
        error = unknown_name("recipe", source, recipes)
        raise ValueError(f"{error}; a file is NAME.yaml, and a setting key=value")
    return settings_in(path)


def _split_override(override: str) -> tuple[str, Any]:
    """The key and the value of ``key=value``; the value is YAML.

    Raises:
        ValueError: for what has no ``=`` or no key.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not key=value")
    return key.strip(), read_yaml(text, f"the value of {override!r}")
