"""Which values a setting of a part may have in a model, and defaults that do not fit there.

Only defaults are replaced; the tuners refuse a user's value that does not fit. A method that has
nothing to train in a model is refused here.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from operator import mul
from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features, check_target_module_exists
from torch import nn

from lorada.attention.call import head_count
from lorada.attention.interface import dispatches, self_attentions
from lorada.methods.matrix_names import SCHEMES
from lorada.methods.meta_model import meta_model
from lorada.methods.method import SHIFTED_ATTENTION, Method, Settings, part_class
from lorada.methods.sizes_and_rates import FITTED, Bound
from lorada.tuners.base.linears import linears, within_layer

# Which widths (in, out) of a matrix a setting has to divide.
_DIVIDED = {"divides_inputs": slice(0, 1), "divides_outputs": slice(1, 2), "divides": slice(0, 2)}
# How large a setting may be on a matrix of these widths.
_ROOM: dict[str, Callable[[int, int], int]] = {
    "side": min,
    "largest_side": min,
    "entries": mul,
    "sparse": lambda rows, columns: rows * columns // (rows + columns),
}
# Tuners of PEFT that say nothing, or too late, about other kinds of linear layers.
_LINEAR_ONLY = {"osf": "OSF", "shira": "SHiRA"}


def refuse_undefined(method: Method, model_config: Any) -> None:
    """Refuse a method that has nothing to train in a model."""
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


class ModelShape:
    """What the settings of parts depend on in a model: its heads, tokens and matrices."""

    def __init__(self, config: Any) -> None:
        self._config = config

    @cached_property
    def module(self) -> nn.Module:
        """The model without weights; an empty module where transformers has no class for it."""
        found = meta_model(self._config)
        return nn.Module() if found is None else found

    @cached_property
    def _parameters(self) -> int:
        """How many parameters the model has, which is above any value that makes sense."""
        return sum(each.numel() for each in self.module.parameters()) or 10**12

    def targets(self, part: str, settings: Settings) -> dict[str, nn.Module]:
        """The linear layers that a part is placed on, by name; all in layers if PEFT chooses."""
        config = part_class(part)(**settings)
        return {
            name: linear
            for name, linear in linears(self.module).items()
            if (
                check_target_module_exists(config, name)
                if config.target_modules
                else within_layer(name) != name
            )
        }

    def allowed(
        self, part: str, bound: Bound | None, settings: Settings
    ) -> tuple[Sequence[int], str]:
        """The values that a setting of a part may have, and the end of a sentence about others.

        ``bound`` is what limits the setting, ``settings`` are all those of the part.
        """
        if bound in ("tokens", "context", "length"):
            tokens: Any = getattr(self._config, "max_position_embeddings", None)
            known = isinstance(tokens, int) and tokens > 1
            most = int(tokens) - (bound != "tokens") if known else self._parameters
            most = min(most, settings["length"]) if bound == "length" else most
            return range(1, most + 1), f"does not fit the {tokens} tokens that the model takes"
        if bound == "divides_heads" and (heads := self._heads(settings.get("stacks"))):
            return _divisors(heads)
        matrices = self.targets(part, settings).values() if bound is not None else []
        shapes: list[tuple[int, ...]] = [_get_in_out_features(each) for each in matrices]
        if not shapes or bound == "divides_heads":
            return range(1, self._parameters + 1), ""
        if bound in _DIVIDED:
            found, why = _divisors({side for shape in shapes for side in shape[_DIVIDED[bound]]})
            # A block of a single number has no rotation.
            return (found[1:] or found if bound == "divides_inputs" else found), why
        if bound == "low_rank":
            return range(1, settings.get("r", 1) * sum(sum(shape) for shape in shapes) + 1), ""
        room = _ROOM[str(bound)]
        columns, rows = (max if bound == "largest_side" else min)(shapes, key=lambda s: room(*s))
        why = f"is more than a weight of {rows} × {columns} has room for"
        return range(1, max(1, room(columns, rows)) + 1), why

    def _heads(self, stacks: Sequence[str] | None) -> set[int]:
        """The numbers of heads of the self-attention modules, those of some stacks if given."""
        return {
            head_count(self.module.get_submodule(name))
            for name in self_attentions(self.module)
            if not stacks or any(stack in name.split(".") for stack in stacks)
        }


def _divisors(counts: Iterable[int]) -> tuple[list[int], str]:
    """The common divisors of some numbers, and that another does not divide them."""
    common = math.gcd(*counts)
    why = f"does not divide {' and '.join(map(str, sorted(counts)))}"
    return [each for each in range(1, common + 1) if common % each == 0], why


def fit_defaults(
    parts: Mapping[str, Settings], stated: Mapping[str, Collection[str]], model_config: Any
) -> tuple[dict[str, Settings], list[str]]:
    """Replace the defaults that do not fit a model by the nearest values that do.

    ``stated`` names the settings of each part that the user wrote, which are kept. Returns the
    settings, and a sentence for each that was replaced.
    """
    model = ModelShape(model_config)
    found, sentences = {}, []
    for part, values in parts.items():
        found[part] = dict(values)
        if part in _LINEAR_ONLY:
            _refuse_conv1d(part, values, model)
        if part == "adalora":
            refuse_no_pruning(values["init_r"], values["target_r"])
        for key, bound in FITTED.get(part, {}).items():
            value = values.get(key, getattr(part_class(part), key, None))
            if value is None or key in stated.get(part, ()):
                continue
            best, why = _nearest(model, part, key, bound, value, values)
            if best != value:
                found[part][key] = best
                sentences.append(f"{part}.{key}={value} {why}: taking {best}")
        targets = values.get("target_modules")
        if part == "quanta" and "target_modules" not in stated.get(part, ()):
            scheme = SCHEMES.get(model_config.model_type, {})
            fused = scheme.get("query", "") == scheme.get("value", "-")
            if fused and values.get("dims") is None and targets != list(scheme["output"]):
                found[part]["target_modules"] = list(scheme["output"])
                sentences.append(
                    f"quanta.target_modules={targets} is query, key and value in one, and gates of "
                    f"the model's width change a part of that: taking {list(scheme['output'])}"
                )
    return found, sentences


def _nearest(
    model: ModelShape, part: str, key: str, bound: Bound, value: int, settings: Settings
) -> tuple[int, str]:
    """The nearest value of a setting that fits, and why its default does not.

    Of heads it is the nearest on either side, and the larger of two; else the nearest below.
    """
    if settings.get("ablation") == "full_rank" and key == "heads":
        return value, ""  # as many maps as heads
    sizes, why = model.allowed(part, bound, settings)
    if isinstance(sizes, list) and bound == "divides_heads":
        return min(sizes, key=lambda size: (abs(size - value), -size)), why
    return sizes[max(0, bisect(sizes, value) - 1)], why


def _refuse_conv1d(part: str, values: Settings, model: ModelShape) -> None:
    for name, module in model.targets(part, values).items():
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"PEFT's {_LINEAR_ONLY[part]} takes nn.Linear only, and {name} of "
                f"{type(model.module).__name__} is a {type(module).__name__}: use another method, "
                "such as lora"
            )


def refuse_no_pruning(init_r: int, target_r: int) -> None:
    """Refuse ranks of AdaLoRA that leave nothing to prune, on which PEFT fails in training."""
    if target_r >= init_r:
        raise ValueError(
            f"AdaLoRA: target_r={target_r} is not below init_r={init_r}, so there is nothing to "
            "prune: raise init_r, lower target_r, or use lora"
        )
