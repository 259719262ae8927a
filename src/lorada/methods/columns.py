"""The settings of a method for a model: which column it takes, in the names of its own matrices."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lorada.methods.empty_model import linears_of
from lorada.methods.matrix_names import SCHEMES, Scheme, family_of, fits, renamed
from lorada.methods.method import HOMES, Settings
from lorada.methods.other_models import ELSEWHERE
from lorada.methods.table import METHODS
from lorada.support.models import MODELS
from lorada.tuners.bottleneck.placements import LINEARS

NOT_FROM_THE_PAPER = "not from the paper"  # which reports look for
# Settings that name modules; the second trains them whole.
NAMING = ("target_modules", "modules_to_save")


@dataclass(frozen=True)
class Column:
    """The settings of a method for one kind of model.

    Attributes:
        home: the model type whose names the settings have.
        parts: part name → settings.
        source: where they come from, in words.
    """

    home: str
    parts: Mapping[str, Settings]
    source: str


def column_of(name: str, model_config: Any) -> Column:
    """The settings of a method for a model: its own column, that of its family, or one of ours.

    Args:
        name: a key of ``METHODS`` with parts.
        model_config: the transformers config of the model.
    """
    method, family, model_type = METHODS[name], family_of(model_config), model_config.model_type
    named = [key for key, model in MODELS.items() if model.is_model_of(model_config)]
    # A model of MODELS may have its column under the name of its type, as mBART has.
    for key in (*named, *([model_type] if named else []), family):
        if key in method.parts:
            home = HOMES.get(key, model_type)
            return Column(home, method.parts[key], _source(method.source, home, model_type))
    ours = ELSEWHERE[name]
    family = "roberta" if family == "deberta" else family
    source = f"{NOT_FROM_THE_PAPER}: {ours.source}"
    return Column(HOMES[family], ours.columns[family], source)


def _source(source: str, home: str, model_type: str) -> str:
    taken = "" if home == model_type else f"; those of {home} models, taken to a {model_type} model"
    return source + taken


def settings_for(
    column: Column, stated: Mapping[str, Settings], model_config: Any
) -> dict[str, Settings]:
    """The settings of a column for a model, with what the user stated in their place.

    Raises:
        ValueError: for a model type whose matrices have names that nobody knows, where the user
            names none either.
    """
    found: dict[str, Settings] = {}
    here: Scheme | None = None
    for part, values in column.parts.items():
        own = stated.get(part, {})
        settings = {**deepcopy(values), **own}
        named = [(key, column.home) for key in NAMING if key in values and key not in own]
        placement = settings.get("placement")
        if placement in LINEARS and "target_modules" not in settings:
            settings["target_modules"] = list(LINEARS[placement])
            named.append(("target_modules", "llama"))
        for key, home in named:
            if isinstance(settings[key], str):
                continue  # a regex of the model that the column is of
            here = here or scheme_of(model_config, f"{part}.{key}")
            settings[key] = renamed(settings[key], SCHEMES[home], here)
        if here is SCHEMES["gpt2"] and part in ("lora", "adalora"):
            settings.setdefault("fan_in_fan_out", True)  # the layout of Conv1D's weights
        found[part] = settings
    return found


def scheme_of(model_config: Any, wanted: str) -> Scheme:
    """The names of a model's matrices: those of its type, or of a type with the same linears.

    Raises:
        ValueError: if nobody knows them, naming the setting that says them.
    """
    model_type = model_config.model_type
    if model_type in SCHEMES:
        return SCHEMES[model_type]
    linears = linears_of(model_config)
    for scheme in SCHEMES.values():
        if linears and fits(scheme, linears):
            return scheme
    known = f"; its layers have {', '.join(linears)}" if linears else ""
    raise ValueError(
        f"the matrices of {model_type} models have no names that are known here: "
        f"give {wanted}=[…]{known}"
    )
