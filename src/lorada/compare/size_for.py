"""``size_for``: the largest size of a method that trains no more parameters than a budget."""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from lorada.methods import build
from lorada.methods.build import choose_settings, settings_for
from lorada.methods.fit_to_model import ModelShape
from lorada.methods.lookup import method_named
from lorada.methods.method import Settings, part_class
from lorada.methods.sizes_and_rates import BOUNDS, FEWER_WHEN_LARGER, SIZES
from lorada.runs.recipe import Recipe
from lorada.training.models.loading import load_config
from lorada.training.parameter_counts import counts_of

# How many smaller sizes are tried beside one that cannot be built: ranks of GraLoRA must be even.
NEAR = 8


def limit_of(budget: str, total: int) -> int:
    """The most parameters that may train, without a task head, on a base of ``total`` parameters.

    A budget is a share or a number, such as ``0.2%``, ``100000`` or ``100_000``.
    """
    plain = budget.strip()
    try:
        if plain.endswith("%"):
            percent = Decimal(plain[:-1].strip())
            if percent.is_finite() and 0 < percent <= 100:
                return int(total * percent / 100)
        elif (number := int(plain)) > 0:
            return number
    except (ValueError, InvalidOperation):
        pass
    raise ValueError(
        f"budget {budget!r} is neither a share above 0% and up to 100%, such as 0.2%, nor a "
        "number of parameters above 0, such as 100000"
    )


@dataclass(frozen=True)
class Sized:
    """A method at the size that was chosen for it."""

    parts: dict[str, Settings]  # settings that give this size, with those that the recipe had
    counts: dict[str, Any]  # as ``parameters_of`` counts
    above: bool  # whether it trains more than the budget, because there is no smaller size


def size_for(recipe: Recipe, budget: str) -> Sized:
    """The largest size of a recipe's method that trains no more parameters than a budget.

    A budget is as ``limit_of`` reads it. All parts of a stack grow together, in the ratio of their
    default sizes, each from its smallest size on. A size that the recipe sets stays as it is. A
    size that cannot be built, or trains no more than a smaller one, is left out. If even the
    smallest size is above the budget, it is taken. A method without a size stays as it is.

    Raises:
        ValueError: if the method cannot be built at any size.
    """
    parts = growing_parts(recipe)
    if not parts:
        counts = counts_of(recipe)
        above = counts["trainable"] > limit_of(budget, counts["total"])
        return Sized(dict(recipe.parts), counts, above)
    leader = max(parts, key=lambda part: part.steps)

    def overrides(index: int) -> dict[str, Settings]:
        """The settings of all parts where the leader has the size with this index."""
        size, found = leader.sizes[index], dict(recipe.parts)
        for part in parts:
            own = size if part is leader else part.scaled(leader.scale(size))
            own = part.sizes[0] if index == 0 else own
            found[part.name] = part.at(own, recipe.parts.get(part.name, {}))
        return found

    def counts_at(index: int) -> dict[str, Any]:
        return counts_of(recipe.model_copy(update={"parts": overrides(index)}))

    def trained(index: int) -> int:
        """How many parameters train at an index; 0 if this size cannot be built."""
        try:
            return int(counts_at(index)["trainable"])
        except ValueError:
            return 0

    with _without_warnings():
        usual = leader.sizes.index(leader.scaled(1.0))
        first = next(filter(trained, (*range(len(leader.sizes))[:NEAR], usual)), usual)
        smallest = counts_at(first)  # raises what is wrong if no size can be built
        limit = limit_of(budget, smallest["total"])
        if smallest["trainable"] > limit:
            return Sized(overrides(first), smallest, above=True)
        best = _largest(trained, first, len(leader.sizes), limit)
        return Sized(overrides(best), counts_at(best), above=False)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence what is said of a method each time that it is built; ``settings_from`` has it too."""
    before = build.logger.level
    build.logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        build.logger.setLevel(before)


def _largest(trained: Callable[[int], int], first: int, end: int, limit: int) -> int:
    """The first index with the most trained parameters that are not above a limit.

    A size that cannot be built counts as the next smaller one that can be; where there is none near
    it, it and all larger ones cannot be built.

    Args:
        trained: how many parameters train at an index, more at a later one; 0 if it cannot be
            built.
        first: an index that is within the limit.
        end: all indices lie before it.
        limit: the most parameters.
    """

    def count(index: int) -> int:
        near = range(index, max(first, index - NEAR) - 1, -1)
        return next(filter(None, map(trained, near)), limit + 1)

    high = first + 1
    while high < end and count(high) <= limit:
        high = first + 2 * (high - first)
    indices = range(first, min(high, end))
    best = indices[bisect_right(indices, limit, key=count) - 1]
    return first + bisect_left(indices, count(best), key=count)  # LoKr's ranks have an end


@dataclass(frozen=True)
class GrowingPart:
    """A part of a method, and the sizes that it may have."""

    name: str
    settings: Settings  # at its default size
    keys: tuple[str, ...]  # the setting that is its size, then those that keep their ratio to it
    sizes: Sequence[int]  # from the fewest trained parameters to the most

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
