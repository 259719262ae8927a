"""Chooses the settings of a method for a model, and translates the names of matrices in them.

LLaMA's ``q_proj``, for one, becomes ``query`` on a BERT.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lorada.methods.matrix_names import SCHEMES, Scheme, family_of, fits, renamed
from lorada.methods.meta_model import meta_model
from lorada.methods.method import Family, Method, Settings, part_class
from lorada.methods.overrides import settings_of
from lorada.support.models import MODELS
from lorada.tuners.base.linears import layer_linear_names
from lorada.tuners.bottleneck.placements import PLACEMENTS

NOT_FROM_THE_PAPER = "not from the paper"  # reports look for these words
# Settings that name modules: those that the part adapts, and those that train as a whole.
NAMING = ("target_modules", "feedforward_modules", "modules_to_save")

# Key of a method's settings → the model type whose names of matrices they use.
WRITTEN_FOR: dict[str, str] = {
    "llama": "llama", "roberta": "roberta", "deberta": "deberta-v2", "bart": "bart",
}  # fmt: skip


@dataclass(frozen=True)
class ChosenSettings:
    """The settings of a method for one kind of model."""

    homes: Mapping[str, str]  # part name → the model type whose names of matrices its settings use
    parts: Mapping[str, Settings]  # part name → settings
    source: str  # where they come from, in words


def choose_settings(method: Method, model_config: Any) -> ChosenSettings:
    """A method's settings for a model: the model's own, its family's, or unpublished ones."""
    if method.summands:
        return _joined([(m.name, choose_settings(m, model_config)) for m in method.summands])
    family, model_type = family_of(model_config), model_config.model_type
    # DeBERTa is an encoder like RoBERTa, and uses its settings where a method has none for DeBERTa.
    families: tuple[Family, ...] = (family, "roberta") if family == "deberta" else (family,)
    named = [key for key, model in MODELS.items() if model.is_model_of(model_config)]
    # A named model may have its settings under its model type, as mBART has.
    for key in (*named, *([model_type] if named else []), *families):
        if key in method.parts:
            home = WRITTEN_FOR.get(key, model_type)
            parts = method.parts[key]
            source = _source(method.source, home, model_type)
            return ChosenSettings(dict.fromkeys(parts, home), parts, source)
    for key in families:
        if key in method.unpublished.parts:
            parts = method.unpublished.parts[key]
            source = f"{NOT_FROM_THE_PAPER}: {method.unpublished.source}"
            return ChosenSettings(dict.fromkeys(parts, WRITTEN_FOR[key]), parts, source)
    known = ", ".join(method.parts | method.unpublished.parts)
    raise ValueError(
        f"{method.name} has no settings for {model_type} models, only for {known}: "
        "use another method"
    )


def _joined(summands: Sequence[tuple[str, ChosenSettings]]) -> ChosenSettings:
    """The settings of a sum, from those of each method, by name."""
    ours = f"{NOT_FROM_THE_PAPER}: "
    sources = "; ".join(f"{name}: {one.source.removeprefix(ours)}" for name, one in summands)
    unpublished = any(one.source.startswith(ours) for _, one in summands)
    return ChosenSettings(
        {part: home for _, one in summands for part, home in one.homes.items()},
        {part: values for _, one in summands for part, values in one.parts.items()},
        ours + sources if unpublished else sources,
    )


def _source(source: str, home: str, model_type: str) -> str:
    taken = "" if home == model_type else f"; those of {home} models, taken to a {model_type} model"
    return source + taken


def settings_for(
    chosen: ChosenSettings, stated: Mapping[str, Settings], model_config: Any
) -> dict[str, Settings]:
    """Translate chosen settings for a model, and put the user's (``stated``) in their place."""
    found: dict[str, Settings] = {}
    here: Scheme | None = None
    for part, values in chosen.parts.items():
        own = stated.get(part, {})
        settings = {**deepcopy(values), **_alpha_for(part, values, own), **own}
        named = [(key, chosen.homes[part]) for key in NAMING if key in values and key not in own]
        placement = PLACEMENTS.get(settings.get("placement", ""))
        if placement is not None and placement.linears and "target_modules" not in settings:
            settings["target_modules"] = list(placement.linears)
            named.append(("target_modules", "llama"))
        for key, home in named:
            if isinstance(settings[key], str):
                continue  # a regex, which is for the model it was written for
            here = here or scheme_of(model_config, f"{part}.{key}")
            settings[key] = renamed(settings[key], SCHEMES[home], here)
        if here is SCHEMES["gpt2"] and "fan_in_fan_out" in settings_of(part):
            settings.setdefault("fan_in_fan_out", True)  # the layout of Conv1D's weights
        found[part] = settings
    return found


def _alpha_for(part: str, values: Settings, own: Settings) -> Settings:
    """The alpha that keeps the scale α/r of a part whose rank the user gives alone."""
    fields = part_class(part).__dataclass_fields__
    rank, alpha = rank_and_alpha(fields) or ("", "")
    # rsLoRA's scale is α/√r, by which one alpha suits every rank.
    if rank not in own or alpha in own or own.get("use_rslora"):
        return {}
    size, before = (values.get(key, fields[key].default) for key in (rank, alpha))
    if not size or not before:
        return {}
    after = before * own[rank] / size
    return {alpha: int(after) if after.is_integer() else after}


def rank_and_alpha(fields: Collection[str]) -> tuple[str, str] | None:
    """The names of a part's rank and of the alpha that is divided by it; None without both."""
    rank = next((name for name in ("init_r", "rank", "r") if name in fields), None)
    alpha = next((name for name in fields if name.endswith("alpha")), None)
    return (rank, alpha) if rank and alpha else None


def scheme_of(model_config: Any, wanted: str) -> Scheme:
    """The names of a model's matrices: those of its type, or of a type with the same linear layers.

    ``wanted`` is the setting that needs the names; the error tells the user to give it.
    """
    model_type = model_config.model_type
    if model_type in SCHEMES:
        return SCHEMES[model_type]
    model = meta_model(model_config)
    linears = [] if model is None else layer_linear_names(model)
    for scheme in SCHEMES.values():
        if linears and fits(scheme, linears):
            return scheme
    known = f"; its layers have {', '.join(linears)}" if linears else ""
    raise ValueError(
        f"the matrices of {model_type} models have no names that are known here: "
        f"give {wanted}=[…]{known}"
    )
