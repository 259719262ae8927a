"""Defaults that do not fit a model fall to the nearest that do; what has no form in it is refused.

Only settings that nobody stated are changed. Those of the user are left to the tuners, which refuse
what does not fit.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from lorada.attention.call import head_count
from lorada.attention.interface import dispatches
from lorada.methods.empty_model import skeleton
from lorada.methods.matrix_names import SCHEMES
from lorada.methods.method import PARTS, Method, Settings, load
from lorada.tuners.bottleneck.sites import linear_under
from lorada.tuners.lmam import self_attentions

SHIFTED = "lorada.methods.callbacks.longlora:ShiftedAttention"
# Value, settings of its part, model → the nearest value that fits, and why the other does not.
Fit = Callable[[Any, Settings, "_Lazy"], tuple[Any, str]]


def refuse_undefined(name: str, method: Method, model_config: Any) -> None:
    """Refuse a method that has nothing to work on in a model.

    Raises:
        ValueError: saying what it works on.
    """
    rule = method.trainable
    picks, shifts = rule not in (None, "."), SHIFTED in method.callbacks
    model = skeleton(model_config) if picks or shifts else None
    if model is None:
        return
    if picks and not any(re.search(str(rule), key) for key, _ in model.named_parameters()):
        raise ValueError(f"{name} trains {method.trains}, and {type(model).__name__} has none")
    if shifts and not any(dispatches(module) for module in model.modules()):
        raise ValueError(
            f"{name} needs attention that takes a mask for each head, and {type(model).__name__} "
            "computes its own instead of calling transformers' attention functions"
        )


def fitted(
    parts: Mapping[str, Settings], stated: Mapping[str, Collection[str]], model_config: Any
) -> tuple[dict[str, Settings], list[str]]:
    """Settings with the defaults among them that do not fit a model replaced by the nearest.

    Args:
        parts: part name → settings.
        stated: part name → the settings that the user stated, which stay.
        model_config: the transformers config of the model.

    Returns:
        The settings, and a sentence for each that was replaced.

    Raises:
        ValueError: for matrices that a part cannot be on.
    """
    model = _Lazy(model_config)
    found, sentences = {}, []
    for part, values in parts.items():
        found[part] = dict(values)
        if part == "shira":
            _refuse_conv1d(values, model)
        for key, fit in _FITS.get(part, {}).items():
            value = values.get(key)
            if value is None or key in stated.get(part, ()):
                continue
            best, why = fit(value, values, model)
            if best != value:
                found[part][key] = best
                sentences.append(f"{part}.{key}={value} {why}: taking {best}")
    return found, sentences


class _Lazy:
    """A model without weights that is made once it is asked for."""

    def __init__(self, model_config: Any) -> None:
        self.config = model_config
        self._made: list[nn.Module | None] = []

    def model(self) -> nn.Module | None:
        self._made = self._made or [skeleton(self.config)]
        return self._made[0]


def _fit_heads(heads: int, values: Settings, lazy: _Lazy) -> tuple[int, str]:
    """The divisor of the attention heads that is nearest; of two, the larger."""
    model, stacks = lazy.model(), values.get("stacks")
    if model is None or values.get("ablation") == "full_rank":
        return heads, ""
    counts = {
        head_count(model.get_submodule(name))
        for name in self_attentions(model)
        if not stacks or any(stack in name.split(".") for stack in stacks)
    }
    if not counts:
        return heads, ""
    common = math.gcd(*counts)
    divisors = [count for count in range(1, common + 1) if common % count == 0]
    best = min(divisors, key=lambda count: (abs(count - heads), -count))
    return best, f"does not divide {' and '.join(map(str, sorted(counts)))}"


def _fit_length(length: int, values: Settings, lazy: _Lazy) -> tuple[int, str]:
    """At most as many tokens as the model takes."""
    context = _context(lazy)
    return (length, "") if context is None else (min(length, context), _beyond(context))


def _fit_prefix(length: int, values: Settings, lazy: _Lazy) -> tuple[int, str]:
    """Fewer tokens than the model takes."""
    context = _context(lazy)
    return (length, "") if context is None else (min(length, context - 1), _beyond(context))


def _context(lazy: _Lazy) -> int | None:
    context = getattr(lazy.config, "max_position_embeddings", None)
    return context if isinstance(context, int) and context > 1 else None


def _beyond(context: int) -> str:
    return f"does not fit the {context} tokens that the model takes"


def _fit_shira(r: int, values: Settings, lazy: _Lazy) -> tuple[int, str]:
    """Such that r (in + out) is not more than in · out, of every matrix."""
    shapes = _matrices("shira", values, lazy)
    if not shapes:
        return r, ""
    room, (rows, columns) = min(((i * o) // (i + o), (o, i)) for i, o in shapes)
    return max(1, min(r, room)), f"is more than a weight of {rows} × {columns} has room for"


def _fit_lamda(rank: int, values: Settings, lazy: _Lazy) -> tuple[int, str]:
    """Not more than the rank of every matrix."""
    shapes = _matrices("lamda", values, lazy)
    if not shapes:
        return rank, ""
    columns, rows = min(shapes, key=min)
    return min(rank, columns, rows), f"is more than a weight of {rows} × {columns} has"


def _fit_fused(targets: Any, values: Settings, lazy: _Lazy) -> tuple[Any, str]:
    """The output projection, where the model has query, key and value in one matrix."""
    scheme = SCHEMES.get(lazy.config.model_type)
    if scheme is None or scheme["query"] != scheme["value"] or values.get("dims") is not None:
        return targets, ""
    why = "is query, key and value in one, and gates of the model's width change a part of that"
    return list(scheme["output"]), why


def _targets(part: str, values: Settings, lazy: _Lazy) -> dict[str, nn.Module]:
    """The linears that a part is on, by name."""
    model, config = lazy.model(), load(PARTS[part])(**values)
    if model is None or config.target_modules is None:
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if linear_under(module) is not None and check_target_module_exists(config, name)
    }


def _matrices(part: str, values: Settings, lazy: _Lazy) -> list[tuple[int, int]]:
    """Widths (in, out) of the linears that a part is on; of a ``Conv1D`` the other way round."""
    shapes = [module.weight.shape for module in _targets(part, values, lazy).values()]
    return [(int(columns), int(rows)) for rows, columns in shapes]  # type: ignore[misc]


def _refuse_conv1d(values: Settings, lazy: _Lazy) -> None:
    for name, module in _targets("shira", values, lazy).items():
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"PEFT's SHiRA takes nn.Linear only, and {name} of "
                f"{type(lazy.model()).__name__} is a {type(module).__name__}: use another method, "
                "such as lora"
            )


_FITS: dict[str, dict[str, Fit]] = {
    "quanta": {"target_modules": _fit_fused},
    "lmam": {"heads": _fit_heads, "length": _fit_length},
    "prefix": {"length": _fit_prefix},
    "shira": {"r": _fit_shira},
    "lamda": {"rank": _fit_lamda},
}
