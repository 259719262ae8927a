"""Fits a method to a model: replaces defaults that do not fit by the nearest values that do.

Only defaults are replaced; the tuners refuse a user's value that does not fit. A method that has
nothing to train in a model is refused here.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from lorada.attention.call import head_count
from lorada.attention.interface import dispatches
from lorada.attention.modules import self_attentions
from lorada.methods.matrix_names import SCHEMES
from lorada.methods.meta_model import meta_model
from lorada.methods.method import SHIFTED_ATTENTION, Method, Settings, part_class
from lorada.tuners.base.linears import linears, widths


def refuse_undefined(method: Method, model_config: Any) -> None:
    """Refuse a method that has nothing to train in a model.

    Raises:
        ValueError: saying what the method needs.
    """
    rule = method.trainable
    picks, shifts = rule not in (None, "."), SHIFTED_ATTENTION in method.callbacks
    model = meta_model(model_config) if picks or shifts else None
    if model is None:
        return
    name, kind = method.name, type(model).__name__
    if picks and not any(re.search(str(rule), key) for key, _ in model.named_parameters()):
        raise ValueError(f"{name} trains {method.trains}, and {kind} has none")
    if shifts and not any(dispatches(module) for module in model.modules()):
        raise ValueError(
            f"{name} needs attention that takes a mask for each head, and {kind} "
            "computes its own instead of calling transformers' attention functions"
        )


def fit_defaults(
    parts: Mapping[str, Settings], stated: Mapping[str, Collection[str]], model_config: Any
) -> tuple[dict[str, Settings], list[str]]:
    """Replace the defaults that do not fit a model by the nearest values that do.

    ``stated`` names the settings of each part that the user wrote, which are kept.

    Returns:
        The settings, and a sentence for each that was replaced.

    Raises:
        ValueError: for matrices that a part cannot be placed on.
    """
    model = _Model(model_config)
    found, sentences = {}, []
    for part, values in parts.items():
        found[part] = dict(values)
        if part in _LINEAR_ONLY:
            _refuse_conv1d(part, values, model)
        for key, fit in _FITS.get(part, {}).items():
            value = values.get(key, getattr(part_class(part), key, None))
            if value is None or key in stated.get(part, ()):
                continue
            best, why = fit(value, values, model, part)
            if best != value:
                found[part][key] = best
                sentences.append(f"{part}.{key}={value} {why}: taking {best}")
    return found, sentences


class _Model:
    """A model's config, and the model on the meta device, which is made when first needed."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @cached_property
    def module(self) -> nn.Module | None:
        return meta_model(self.config)


# Called with a default, the settings of its part, the model, and the part's name; returns the
# nearest value that fits, and why the default does not.
Fit = Callable[[Any, Settings, _Model, str], tuple[Any, str]]


def _fit_heads(heads: int, values: Settings, model: _Model, part: str) -> tuple[int, str]:
    """The nearest divisor of the number of attention heads; of two, the larger."""
    module, stacks = model.module, values.get("stacks")
    if module is None or values.get("ablation") == "full_rank":
        return heads, ""
    counts = {
        head_count(module.get_submodule(name))
        for name in self_attentions(module)
        if not stacks or any(stack in name.split(".") for stack in stacks)
    }
    if not counts:
        return heads, ""
    common = math.gcd(*counts)
    divisors = [count for count in range(1, common + 1) if common % count == 0]
    best = min(divisors, key=lambda count: (abs(count - heads), -count))
    return best, f"does not divide {' and '.join(map(str, sorted(counts)))}"


def _fit_tokens(left: int) -> Fit:
    """At most as many tokens as the model takes, with ``left`` tokens for the text."""

    def fit(length: int, values: Settings, model: _Model, part: str) -> tuple[int, str]:
        if values.get("form", "position") != "position":
            return length, ""  # a map in another form has no length
        context = getattr(model.config, "max_position_embeddings", None)
        if not isinstance(context, int) or context < 2:
            return length, ""
        why = f"does not fit the {context} tokens that the model takes"
        return min(length, context - left), why

    return fit


def _fit_fused(targets: Any, values: Settings, model: _Model, part: str) -> tuple[Any, str]:
    """The output projection, if query, key and value are one matrix in the model."""
    scheme = SCHEMES.get(model.config.model_type)
    if scheme is None or scheme["query"] != scheme["value"] or values.get("dims") is not None:
        return targets, ""
    why = "is query, key and value in one, and gates of the model's width change a part of that"
    return list(scheme["output"]), why


def _fit_divisor(*sides: int) -> Fit:
    """The largest divisor of the weights' widths; ``sides``: 0 for the input's, 1 the output's."""

    def fit(size: int, values: Settings, model: _Model, part: str) -> tuple[int, str]:
        counts = {shape[side] for shape in _matrices(part, values, model) for side in sides}
        common = math.gcd(*counts) if counts else size
        best = max(divisor for divisor in range(1, size + 1) if common % divisor == 0)
        return best, f"does not divide {' and '.join(map(str, sorted(counts)))}"

    return fit


def _fit_below(most: Callable[[int, int], int]) -> Fit:
    """At most what every weight has room for, given its widths (in, out)."""

    def fit(size: int, values: Settings, model: _Model, part: str) -> tuple[int, str]:
        shapes = _matrices(part, values, model)
        if not shapes:
            return size, ""
        columns, rows = min(shapes, key=lambda shape: most(*shape))
        why = f"is more than a weight of {rows} × {columns} has room for"
        return max(1, min(size, most(columns, rows))), why

    return fit


_FITS: dict[str, dict[str, Fit]] = {
    "quanta": {"target_modules": _fit_fused},
    "lmam": {"heads": _fit_heads, "length": _fit_tokens(left=0)},
    "prefix": {"length": _fit_tokens(left=1)},
    # It trains r·(in + out) of a weight's in · out entries.
    "shira": {"r": _fit_below(lambda rows, columns: rows * columns // (rows + columns))},
    "lamda": {"rank": _fit_below(min)},
    "boft": {"boft_block_size": _fit_divisor(0)},
    "c3a": {"block_size": _fit_divisor(0, 1)},
    "fourierft": {"n_frequency": _fit_below(lambda rows, columns: rows * columns)},
    "gralora": {"gralora_k": _fit_divisor(0, 1)},
    "miss": {"r": _fit_below(min)},
    "oft": {"oft_block_size": _fit_divisor(0)},
    "psoft": {"r": _fit_below(min)},
    "road": {"group_size": _fit_divisor(1)},
    "vblora": {"vector_length": _fit_divisor(0, 1)},
    "waveft": {"n_frequency": _fit_below(lambda rows, columns: rows * columns)},
}


def _targets(part: str, values: Settings, model: _Model) -> dict[str, nn.Module]:
    """The linear layers that a part is placed on, by name."""
    config = part_class(part)(**values)
    if model.module is None or config.target_modules is None:
        return {}
    found = linears(model.module).items()
    return {name: linear for name, linear in found if check_target_module_exists(config, name)}


def _matrices(part: str, values: Settings, model: _Model) -> list[tuple[int, int]]:
    """Widths (in, out) of the linear layers of a part."""
    return [widths(linear) for linear in _targets(part, values, model).values()]


# Tuners of PEFT that say nothing, or too late, about other kinds of linear layers.
_LINEAR_ONLY = {"osf": "OSF", "shira": "SHiRA"}


def _refuse_conv1d(part: str, values: Settings, model: _Model) -> None:
    for name, module in _targets(part, values, model).items():
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"PEFT's {_LINEAR_ONLY[part]} takes nn.Linear only, and {name} of "
                f"{type(model.module).__name__} is a {type(module).__name__}: use another method, "
                "such as lora"
            )
