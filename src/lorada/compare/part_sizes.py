"""``growing_parts``: the parts of a method that have a size, and the sizes that each may have."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorada.methods.fit_to_model import ModelShape
from lorada.methods.lookup import method_named
from lorada.methods.method import Settings, part_class
from lorada.methods.model_settings import choose_settings, settings_for
from lorada.methods.sizes import BOUNDS, FEWER_WHEN_LARGER, SIZES
from lorada.runs.recipe import Recipe
from lorada.training.models.loading import load_config


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
    found, model = [], ModelShape(config)
    chosen = choose_settings(method, config)
    for name, values in settings_for(chosen, recipe.parts, config).items():
        keys, bound = SIZES.get(name, ()), BOUNDS.get(name)
        if values.get("ablation") == "full_rank":  # a map without a rank
            keys, bound = ("length",), "context"
        if not keys or keys[0] in recipe.parts.get(name, {}):
            continue
        defaults = part_class(name).__dataclass_fields__
        needed = {*keys, "r", "length"} & defaults.keys()
        settings = {**{key: defaults[key].default for key in needed}, **values}
        sizes, _ = model.allowed(name, bound, settings)
        if name in FEWER_WHEN_LARGER and isinstance(sizes, list):
            sizes = sizes[::-1]
        if settings[keys[0]]:
            found.append(GrowingPart(name, settings, keys, sizes))
    return found
