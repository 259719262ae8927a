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

from lorada.methods.method import PARTS, Settings, part_class
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
        fixed = {f.name for f in dataclasses.fields(PeftConfig)} | FIXED_FIELDS
    try:
        types = get_type_hints(owner)
    except NameError:
        types = {}
    fields = (f.name for f in dataclasses.fields(owner) if f.init and f.name not in fixed)
    return {name: types.get(name, Any) for name in fields}


@cache
def names_of(section: str) -> frozenset[str]:
    """The names of a section's settings, as the file of its class has them.

    To import that file takes seconds, and a misspelt name is to be answered at once.
    """
    if section not in (*PARTS, TRAINING):
        return frozenset(settings_of(section))  # a tuner of PEFT, which has been imported for it
    where = "transformers:Seq2SeqTrainingArguments" if section == TRAINING else PARTS[section]
    package, _, name = where.partition(":")
    found, classes, waiting = set[str](), _classes(package), [name]
    while waiting:
        if node := classes.get(waiting.pop()):  # not PeftConfig, whose fields are fixed
            waiting += map(ast.unparse, node.bases)
            fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
            found |= {field.id for field in fields if isinstance(field, ast.Name)}
    return frozenset(found - FIXED_ARGUMENTS - FIXED_FIELDS)


@cache
def _classes(package: str) -> dict[str, ast.ClassDef]:
    """The classes of a package that may be those of sections, by name; nothing is imported."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    trees = (
        ast.parse(path.read_bytes()) for path in Path(spec.origin).parent.glob(CLASSES[package])
    )
    return {one.name: one for tree in trees for one in tree.body if isinstance(one, ast.ClassDef)}


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
        found = adapter.validate_python(value)
    except ValidationError as error:
        # One for each type that the setting may have.
        reasons = dict.fromkeys(one["msg"].lower() for one in error.errors())
        raise ValueError(f"{section}.{name}={value!r}: {' or '.join(reasons)}") from error
    if isinstance(value, bool) and type(found) in (int, float):
        return value  # pydantic takes a bool for a number; the class of the section refuses it
    # Instead of enums and other objects, which YAML cannot hold, return the value as written.
    return found if isinstance(found, bool | int | float | str | list | dict | None) else value


def owner_of(key: str, sections: Iterable[str], also: Iterable[str] = ()) -> str:
    """The one section that has the setting ``key``, a bare name such as ``rank``.

    ``also`` are further valid names, for the hint of the error.
    """
    known = {section: names_of(section) for section in sections}
    owners = [section for section, names in known.items() if key in names]
    if len(owners) > 1:
        full = ", ".join(f"{owner}.{key}" for owner in owners)
        raise ValueError(f"{key} is a setting of several sections: write {full}")
    if not owners:
        names = {*also, *(name for types in known.values() for name in types)}
        raise _unknown("override", key, names)
    return owners[0]


def _unknown(kind: str, name: str, known: Collection[str], section: str = "") -> ValueError:
    """An error for an unknown setting, with what it is called here, or the nearest names."""
    for other in ALSO_CALLED.get(name, ()):
        if other in known:
            return ValueError(f"unknown {kind} {name!r}; did you mean {section}{other}?")
    return unknown_name(kind, name, known)


def part_overrides(parts: Collection[str], overrides: Mapping[str, Any]) -> dict[str, Settings]:
    """Sort overrides by part: ``{"lmam": {"rank": 4}}`` from ``lmam={"rank": 4}`` or ``rank=4``."""
    found: dict[str, Settings] = {part: {} for part in parts}
    for key, value in overrides.items():
        of_part = key in found and isinstance(value, dict)
        part = key if of_part else owner_of(key, parts, also=parts)
        for name, inner in value.items() if of_part else [(key, value)]:
            found[part][name] = checked(part, name, inner)
    return found
