"""Which values a setting of a part may have in a model, and defaults that do not fit there.

Only defaults are replaced; the tuners refuse a user's value that does not fit. A method that has
nothing to train in a model is refused here.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import mul
from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features, check_target_module_exists
from torch import nn

from lorada.attention.call import head_count
from lorada.attention.interface import dispatches, self_attentions
from lorada.methods.matrix_names import SCHEMES
from lorada.methods.meta_model import meta_model
from lorada.methods.method import (
    EVERYTHING,
    SHIFTED_ATTENTION,
    Method,
    Settings,
    part_class,
    part_config,
)
from lorada.methods.sizes_and_rates import FITTED, Bound
from lorada.tuners.base.linears import linears, within_layer

# How large a setting may be on a matrix of these widths, whichever is that of its inputs.
_ROOM: dict[str, Callable[[int, int], int]] = {
    "side": min,
    "largest_side": min,
    "entries": mul,
    "sparse": lambda width, other: width * other // (width + other),
}
# Tuners of PEFT that say nothing, or too late, about other kinds of linear layers.
_LINEAR_ONLY = {"osf": "OSF", "shira": "SHiRA"}


def refuse_undefined(method: Method, model_config: Any) -> None:
    """Refuse a method that has nothing to train in a model."""
    pattern = method.trainable
    trains_some_parameters = pattern is not None and pattern != EVERYTHING
    shifts_attention = SHIFTED_ATTENTION in method.callbacks
    if not (trains_some_parameters or shifts_attention):
        return
    model = meta_model(model_config)
    if model is None:  # transformers has no class for it, so there is nothing to look at
        return
    kind = type(model).__name__
    if trains_some_parameters:
        names = [name for name, _ in model.named_parameters()]
        if not any(re.search(str(pattern), name) for name in names):
            raise ValueError(f"{method.name} trains {method.trains}, and {kind} has none")
    if shifts_attention and not any(dispatches(module) for module in model.modules()):
        raise ValueError(
            f"{method.name} needs attention that takes a mask for each head, and {kind} "
            "computes its own instead of calling transformers' attention functions"
        )


@dataclass(frozen=True)
class AllowedValues:
    """The values that a setting of a part may have in a model."""

    values: Sequence[int]  # ascending; a range where every number up to the last fits
    # The end of a sentence about a value that does not fit; empty where the model sets no limit.
    why_not: str = ""


class ModelShape:
    """What the settings of parts depend on in a model: its heads, tokens and matrices."""

    def __init__(self, config: Any) -> None:
        self._config = config

    @cached_property
    def module(self) -> nn.Module:
        """The model without weights; an empty module where transformers has no class for it."""
        model = meta_model(self._config)
        return nn.Module() if model is None else model

    @cached_property
    def _parameters(self) -> int:
        """How many parameters the model has, which is above any value that makes sense."""
        return sum(parameter.numel() for parameter in self.module.parameters()) or 10**12

    def targets(self, part: str, settings: Settings) -> dict[str, nn.Module]:
        """The linear layers that a part is placed on, by name; all in layers if PEFT chooses."""
        config = part_config(part, settings)
        targets = {}
        for name, linear in linears(self.module).items():
            # A config without targets is placed as its tuner chooses, always within the layers.
            if config.target_modules:
                is_target = check_target_module_exists(config, name)
            else:
                is_target = within_layer(name) != name
            if is_target:
                targets[name] = linear
        return targets

    def allowed(self, part: str, bound: Bound | None, settings: Settings) -> AllowedValues:
        """The values that a setting of a part may have.

        Args:
            part: the name of the part.
            bound: what limits the setting; None for nothing.
            settings: all settings of the part.
        """
        if bound is None:
            return self._any_number()
        if bound in ("tokens", "context", "length"):
            return self._allowed_by_tokens(bound, settings)
        if bound == "divides_heads":
            head_counts = self._head_counts(settings.get("stacks"))
            return _common_divisors(head_counts) if head_counts else self._any_number()
        matrices = self.targets(part, settings).values()
        widths: list[tuple[int, int]] = [_get_in_out_features(matrix) for matrix in matrices]
        if not widths:
            return self._any_number()
        if bound in ("divides", "divides_inputs", "divides_outputs"):
            return _allowed_by_division(bound, widths)
        if bound == "low_rank":
            entries_of_a_rank = sum(fan_in + fan_out for fan_in, fan_out in widths)
            return AllowedValues(range(1, settings.get("r", 1) * entries_of_a_rank + 1))
        return _allowed_by_room(bound, widths)

    def _any_number(self) -> AllowedValues:
        return AllowedValues(range(1, self._parameters + 1))

    def _allowed_by_tokens(self, bound: Bound, settings: Settings) -> AllowedValues:
        """Lengths that leave room in the tokens that the model takes, where its config has them."""
        tokens: Any = getattr(self._config, "max_position_embeddings", None)
        if isinstance(tokens, int) and tokens > 1:
            # A map may cover every token ("tokens"); a prefix leaves at least one for a text.
            longest = tokens if bound == "tokens" else tokens - 1
        else:
            longest = self._parameters
        if bound == "length":
            longest = min(longest, settings["length"])
        why_not = f"does not fit the {tokens} tokens that the model takes"
        return AllowedValues(range(1, longest + 1), why_not)

    def _head_counts(self, stacks: Sequence[str] | None) -> set[int]:
        """The numbers of heads of the self-attention modules, those of some stacks if given."""
        counts = set()
        for name in self_attentions(self.module):
            path = name.split(".")
            if not stacks or any(stack in path for stack in stacks):
                counts.add(head_count(self.module.get_submodule(name)))
        return counts


def _common_divisors(counts: Iterable[int]) -> AllowedValues:
    """The numbers that divide each of some numbers."""
    common = math.gcd(*counts)
    divisors = [number for number in range(1, common + 1) if common % number == 0]
    return AllowedValues(divisors, f"does not divide {' and '.join(map(str, sorted(counts)))}")


def _allowed_by_division(bound: Bound, widths: Sequence[tuple[int, int]]) -> AllowedValues:
    """The divisors of the widths (in, out) of all matrices, or of their inputs or outputs."""
    inputs = {fan_in for fan_in, _ in widths}
    outputs = {fan_out for _, fan_out in widths}
    if bound == "divides_outputs":
        return _common_divisors(outputs)
    if bound == "divides":
        return _common_divisors(inputs | outputs)
    divisors = _common_divisors(inputs)
    # A block of a single number has no rotation.
    above_one = divisors.values[1:]
    return AllowedValues(above_one or divisors.values, divisors.why_not)


def _allowed_by_room(bound: Bound, widths: Sequence[tuple[int, int]]) -> AllowedValues:
    """Sizes up to what the matrix with the least room takes, or the one with the most."""
    room = _ROOM[bound]
    choose = max if bound == "largest_side" else min
    columns, rows = choose(widths, key=lambda matrix: room(*matrix))
    why_not = f"is more than a weight of {rows} × {columns} has room for"
    return AllowedValues(range(1, max(1, room(columns, rows)) + 1), why_not)


@dataclass(frozen=True)
class Replacement:
    """A default that does not fit a model, and what is taken instead."""

    part: str
    key: str
    default: Any
    why_not: str  # the end of a sentence about the default
    value: Any

    def __str__(self) -> str:
        """A sentence for the user."""
        return f"{self.part}.{self.key}={self.default} {self.why_not}: taking {self.value}"


@dataclass(frozen=True)
class FittedSettings:
    """The settings of a method's parts, fitted to a model."""

    parts: dict[str, Settings]  # part name → settings
    replaced: list[Replacement]


def fit_defaults(
    parts: Mapping[str, Settings], stated: Mapping[str, Collection[str]], model_config: Any
) -> FittedSettings:
    """Replace the defaults that do not fit a model by the nearest values that do.

    Args:
        parts: the settings of each part, by its name.
        stated: names of the settings of each part that the user wrote, which are kept.
        model_config: the transformers config of the model.
    """
    model = ModelShape(model_config)
    fitted: dict[str, Settings] = {}
    replaced: list[Replacement] = []
    for part, settings in parts.items():
        # What PEFT fails on later is refused first, before numbers are fitted to the matrices.
        if part in _LINEAR_ONLY:
            _refuse_conv1d(part, settings, model)
        if part == "adalora":
            refuse_no_pruning(settings["init_r"], settings["target_r"])
        replacements = _replacements(part, settings, stated.get(part, ()), model)
        if part == "quanta" and "target_modules" not in stated.get(part, ()):
            replacements += _unfused_targets(settings, model_config.model_type)
        changed = {replacement.key: replacement.value for replacement in replacements}
        fitted[part] = {**settings, **changed}
        replaced += replacements
    return FittedSettings(fitted, replaced)


def _replacements(
    part: str, settings: Settings, stated: Collection[str], model: ModelShape
) -> list[Replacement]:
    """The numbers among a part's settings that do not fit, each with the nearest that does."""
    replacements = []
    for key, bound in FITTED.get(part, {}).items():
        default = settings.get(key, getattr(part_class(part), key, None))
        if default is None or key in stated:
            continue
        if key == "heads" and settings.get("ablation") == "full_rank":
            continue  # as many maps as heads
        allowed = model.allowed(part, bound, settings)
        value = _nearest(default, allowed.values, bound)
        if value != default:
            replacements.append(Replacement(part, key, default, allowed.why_not, value))
    return replacements


def _nearest(value: int, values: Sequence[int], bound: Bound) -> int:
    """The nearest of some ascending values: of heads on either side, the larger of two; else below.

    Where all are above, it is the first of them.
    """
    if bound == "divides_heads" and isinstance(values, list):
        divisors: list[int] = values
        return min(divisors, key=lambda divisor: (abs(divisor - value), -divisor))
    return values[max(0, bisect(values, value) - 1)]


def _unfused_targets(settings: Settings, model_type: str) -> list[Replacement]:
    """QuanTA's targets where the model has query, key and value in one matrix."""
    # By default QuanTA adapts query and value. Its gates have the width of the hidden states, so
    # they would change only the first outputs of a matrix with three times as many.
    scheme = SCHEMES.get(model_type)
    if scheme is None or scheme["query"] != scheme["value"]:
        return []
    targets, output = settings.get("target_modules"), list(scheme["output"])
    if settings.get("dims") is not None or targets == output:
        return []
    why_not = "is query, key and value in one, and gates of the model's width change a part of that"
    return [Replacement("quanta", "target_modules", targets, why_not, output)]


def _refuse_conv1d(part: str, settings: Settings, model: ModelShape) -> None:
    """Refuse linear layers of another class than ``nn.Linear``, such as GPT-2's ``Conv1D``."""
    for name, module in model.targets(part, settings).items():
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
