"""``growing_parts``: the parts of a method that have a size, and the sizes that each may have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from lorada.attention.call import head_count
from lorada.attention.modules import self_attentions
from lorada.methods.lookup import method_named
from lorada.methods.meta_model import meta_model
from lorada.methods.method import Settings, part_class
from lorada.methods.model_settings import choose_settings, settings_for
from lorada.methods.sizes import BOUNDS, FEWER_WHEN_LARGER, SIZES, Bound
from lorada.runs.models.loading import load_config
from lorada.runs.recipe import Recipe
from lorada.tuners.base.linears import linears, widths, within_layer


@dataclass(frozen=True)
class GrowingPart:
    """A part of a method, and the sizes that it may have.

    Attributes:
        name: of the part.
        settings: its settings at its default size.
        keys: the setting that is its size, then those that keep their ratio to it.
        sizes: the sizes it may have, from the fewest trained parameters to the most.
    """

    name: str
    settings: Settings
    keys: tuple[str, ...]
    sizes: Sequence[int]

    @property
    def default(self) -> int:
        """Its default size."""
        size: int = self.settings[self.keys[0]]
        return size

    @property
    def steps(self) -> int:
        """How many sizes there are up to the default."""
        if isinstance(self.sizes, range):
            return min(self.default, len(self.sizes))
        return sum(self.scale(size) <= 1 for size in self.sizes)

    def scale(self, size: int) -> float:
        """How much larger a size is than the default."""
        return self.default / size if self.name in FEWER_WHEN_LARGER else size / self.default

    def scaled(self, scale: float) -> int:
        """The size that comes nearest to ``scale`` times the default."""
        wanted = self.default / scale if self.name in FEWER_WHEN_LARGER else self.default * scale
        if isinstance(self.sizes, range):
            return min(max(round(wanted), self.sizes[0]), self.sizes[-1])
        return min(self.sizes, key=lambda size: abs(size - wanted))

    def at(self, size: int, fixed: Settings) -> Settings:
        """The settings that give a size, with those that the user fixed."""
        found: Settings = {self.keys[0]: size}
        for key in self.keys[1:]:
            value = self.settings[key]
            if value is not None:
                scaled = value * size / self.default
                # LoRA's alpha, for one, has to be a whole number.
                found[key] = max(1, round(scaled)) if isinstance(value, int) else scaled
        return {**found, **fixed}


def growing_parts(recipe: Recipe) -> list[GrowingPart]:
    """The parts of a recipe's method that have a size, unless the recipe sets it."""
    method, config = method_named(recipe.method), load_config(recipe.model)
    if method.trainable is not None:
        return []
    found = []
    chosen = choose_settings(method, config)
    for name, values in settings_for(chosen, recipe.parts, config).items():
        keys, bound = SIZES.get(name, ()), BOUNDS.get(name)
        if values.get("ablation") == "full_rank":  # a map without a rank
            keys, bound = ("length",), "context"
        if values.get("form") == "distance":  # likewise, and without a length
            keys, bound = ("heads",), "divides_heads"
        if not keys or keys[0] in recipe.parts.get(name, {}):
            continue
        defaults = part_class(name).__dataclass_fields__
        needed = {*keys, "r", "length"} & defaults.keys()
        settings = {**{key: defaults[key].default for key in needed}, **values}
        if bound == "divides_heads" and settings["heads"] is None:  # a map for each head
            settings["heads"] = _map_heads(recipe.model)
        if settings[keys[0]]:
            sizes = _sizes(name, settings, bound, recipe.model)
            found.append(GrowingPart(name, settings, keys, sizes))
    return found


def _sizes(part: str, settings: Settings, bound: Bound | None, model: str) -> Sequence[int]:
    """The sizes that a part may have, from the fewest trained parameters to the most."""
    if bound in ("length", "context"):
        tokens = getattr(load_config(model), "max_position_embeddings", None)
        room = tokens - 1 if isinstance(tokens, int) and tokens > 1 else _parameters(model)
        return range(1, (min(room, settings["length"]) if bound == "length" else room) + 1)
    if bound == "divides_heads":
        heads = _map_heads(model)
        return [count for count in range(1, heads + 1) if heads % count == 0]
    shapes = _shapes(part, settings, model) if bound is not None else []
    if not shapes:
        return range(1, _parameters(model) + 1)
    most: dict[Bound | None, int] = {
        "side": min(map(min, shapes)),
        "largest_side": max(map(min, shapes)),
        "entries": min(map(math.prod, shapes)),
        "low_rank": settings.get("r", 1) * sum(map(sum, shapes)),
    }
    if bound in most:
        return range(1, most[bound] + 1)
    blocks = bound == "divides_inputs"
    width = math.gcd(*chain.from_iterable(shape[:1] if blocks else shape for shape in shapes))
    divisors = [size for size in range(1, width + 1) if width % size == 0]
    if blocks:  # a block of a single number has no rotation
        return divisors[1:] or divisors
    return divisors[::-1] if part in FEWER_WHEN_LARGER else divisors


def _shapes(part: str, settings: Settings, model: str) -> list[tuple[int, ...]]:
    """Widths (in, out) of the matrices of a part; of all in layers if PEFT chooses them."""
    config = part_class(part)(**settings)
    if not config.target_modules:
        return [shape for name, shape in _linears(model).items() if within_layer(name) != name]
    linears = _linears(model).items()
    return [shape for name, shape in linears if check_target_module_exists(config, name)]


@cache
def _linears(model: str) -> dict[str, tuple[int, ...]]:
    """Widths (in, out) of a model's linear layers, by name."""
    return {key: widths(each) for key, each in linears(_module(model)).items()}


@cache
def _map_heads(model: str) -> int:
    """The greatest divisor of the heads of all self-attention modules."""
    module = _module(model)
    hosts = [module.get_submodule(name) for name in self_attentions(module)]
    return math.gcd(*(head_count(host) for host in hosts)) or 1


@cache
def _parameters(model: str) -> int:
    """How many parameters a model has, which is above any size within a budget."""
    return sum(each.numel() for each in _module(model).parameters()) or 10**12


def _module(model: str) -> nn.Module:
    """A model without weights; an empty module for code of its repository."""
    found = meta_model(load_config(model))
    return nn.Module() if found is None else found
