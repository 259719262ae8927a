"""Checks overrides of settings: which section has a setting, and whether a value has its type.

A section is a part of a method (``lmam``, ``lora``, …) or ``training``, which is
transformers' TrainingArguments. Only the class of the section checks whether a value makes sense.
"""

import ast
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lorada.methods.method import PARTS, TRAINING_SETTINGS, Settings, part_class
from lorada.support.error_messages import unknown_name

TRAINING = "training"
# Where the classes of sections are, in each package.
CLASSES = {
    "transformers": "training_args*.py", "peft": "tuners/*/config.py", "lorada": "tuners/**/*.py",
}  # fmt: skip
# TrainingArguments that follow from the recipe and its task, so that no override may set them.
FIXED_ARGUMENTS = {
    "output_dir", "resume_from_checkpoint", "generation_max_length", "generation_config",
}  # fmt: skip
# Fields of part configs that no override may set, in addition to those of every PEFT config. Those
# of the last line work only in a program that also calls functions of PEFT.
FIXED_FIELDS = {
    "library", "usage", "lorada_version", "runtime_config", "trainable_token_indices",
    "base_model_type",
    "use_asa", "monteclora_config", "kasa_config", "arrow_config",
}  # fmt: skip
# Starts of LoRA that need such calls as well, and one that PEFT documents but does not declare.
CALLED_STARTS = ("eva", "corda", "lora_ga")
UNDECLARED = re.compile(r"pissa_niter_\d+")

# What another part calls the same setting: a name that is given → the names to suggest.
ALSO_CALLED = {
    "rank": ("r", "init_r"), "r": ("rank", "init_r"), "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",), "lr": ("learning_rate",), "epochs": ("num_train_epochs",),
    "steps": ("max_steps",), "batch_size": ("per_device_train_batch_size",),
}  # fmt: skip


@cache
def settings_of(section: str) -> dict[str, Any]:
    """The settings of a section, each with its type."""
    from peft import PeftConfig
    from transformers import Seq2SeqTrainingArguments

    if section == TRAINING:
        owner, fixed = Seq2SeqTrainingArguments, FIXED_ARGUMENTS
    else:
        owner = part_class(section)
        fixed = {field.name for field in dataclasses.fields(PeftConfig)} | FIXED_FIELDS
    try:
        types = get_type_hints(owner)
    except NameError:  # a type that the module imports only for type checkers
        types = {}
    settings = {}
    for field in dataclasses.fields(owner):
        if field.init and field.name not in fixed:
            settings[field.name] = types.get(field.name, Any)
    return settings | TRAINING_SETTINGS.get(section, {})


@cache
def names_of(section: str) -> frozenset[str]:
    """The names of a section's settings, as the file of its class has them.

    To import that file takes seconds, and a misspelt name is to be answered at once.
    """
    if section not in (*PARTS, TRAINING):
        return frozenset(settings_of(section))  # a tuner of PEFT, which has been imported for it
    owner = "transformers:Seq2SeqTrainingArguments" if section == TRAINING else PARTS[section]
    package, _, class_name = owner.partition(":")
    classes = _classes(package)
    names: set[str] = set()
    # The class, its bases and theirs: a field may be declared in any of them.
    waiting = [class_name]
    while waiting:
        definition = classes.get(waiting.pop())
        if definition is None:
            continue  # a class of another package, such as PeftConfig, whose fields are fixed
        names |= _fields_declared_in(definition)
        waiting += map(ast.unparse, definition.bases)
    names |= TRAINING_SETTINGS.get(section, {}).keys()
    return frozenset(names - FIXED_ARGUMENTS - FIXED_FIELDS)


def _fields_declared_in(definition: ast.ClassDef) -> set[str]:
    """The names that a class annotates, as a dataclass does its fields."""
    names = set()
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
    return names


@cache
def _classes(package: str) -> dict[str, ast.ClassDef]:
    """The classes of a package that may be those of sections, by name; nothing is imported."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    classes: dict[str, ast.ClassDef] = {}
    for path in Path(spec.origin).parent.glob(CLASSES[package]):
        for statement in ast.parse(path.read_bytes()).body:
            if isinstance(statement, ast.ClassDef):
                classes[statement.name] = statement
    return classes


def refuse_unknown(section: str, name: str) -> None:
    """Refuse a name that is no setting of a section."""
    if name not in names_of(section):
        raise _unknown(f"setting of {section}", name, names_of(section), f"{section}.")


def checked(section: str, name: str, value: Any) -> Any:
    """Check a value against the type of its setting and convert it, such as ``"1e-3"`` to 0.001."""
    refuse_unknown(section, name)
    types = settings_of(section)
    if (section, name) == (TRAINING, "fsdp") and isinstance(value, bool):
        return value  # transformers takes a bool, although it declares a text for its command line
    if name == "init_lora_weights" and value in CALLED_STARTS:
        raise ValueError(
            f"{section}.{name}={value} needs calls of PEFT that lorada does not make: leave it "
            "out, or train with PEFT alone"
        )
    if name == "init_lora_weights" and UNDECLARED.fullmatch(str(value)):
        return value
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(types[name])
    except Exception:  # pydantic has no schema for the type: the class of the section checks it
        return value
    try:
        parsed = adapter.validate_python(value)
    except ValidationError as error:
        # One for each type that the setting may have.
        reasons = dict.fromkeys(problem["msg"].lower() for problem in error.errors())
        raise ValueError(f"{section}.{name}={value!r}: {' or '.join(reasons)}") from error
    if isinstance(value, bool) and type(parsed) in (int, float):
        return value  # pydantic takes a bool for a number; the class of the section refuses it
    # Instead of enums and other objects, which YAML cannot hold, return the value as written.
    is_plain = isinstance(parsed, bool | int | float | str | list | dict | None)
    return parsed if is_plain else value


def owner_of(key: str, sections: Iterable[str], also_known: Iterable[str] = ()) -> str:
    """The one section that has the setting ``key``, a bare name such as ``rank``.

    Refuses a name that several sections have, or none. ``also_known`` are further valid names, for
    the hint of the error.
    """
    names_by_section = {section: names_of(section) for section in sections}
    owners = [section for section, names in names_by_section.items() if key in names]
    if len(owners) > 1:
        full_names = ", ".join(f"{owner}.{key}" for owner in owners)
        raise ValueError(f"{key} is a setting of several sections: write {full_names}")
    if not owners:
        raise _unknown("override", key, set(also_known).union(*names_by_section.values()))
    return owners[0]


def _unknown(kind: str, name: str, known: Collection[str], prefix: str = "") -> ValueError:
    """An error for an unknown setting, with what it is called here, or the nearest names."""
    for other_name in ALSO_CALLED.get(name, ()):
        if other_name in known:
            return ValueError(f"unknown {kind} {name!r}; did you mean {prefix}{other_name}?")
    return unknown_name(kind, name, known)


def part_overrides(parts: Collection[str], overrides: Mapping[str, Any]) -> dict[str, Settings]:
    """Sort overrides by part: ``{"lmam": {"rank": 4}}`` from ``lmam={"rank": 4}`` or ``rank=4``."""
    by_part: dict[str, Settings] = {part: {} for part in parts}
    for key, value in overrides.items():
        if key in by_part and isinstance(value, dict):
            part, settings = key, value
        else:
            part, settings = owner_of(key, parts, also_known=parts), {key: value}
        for name, setting in settings.items():
            by_part[part][name] = checked(part, name, setting)
    return by_part
