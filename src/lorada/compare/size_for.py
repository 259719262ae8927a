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
from lorada.methods.sizes_and_rates import BOUNDS, FEWER_WHEN_LARGER, size_settings
from lorada.runs.recipe import Recipe
from lorada.training.models.loading import load_config
from lorada.training.parameter_counts import counts_of

# How many smaller sizes are tried beside one that cannot be built: ranks of GraLoRA must be even.
NEAR = 8


def limit_of(budget: str, total: int) -> int:
    """The most parameters that may train, without a task head, on a base of ``total`` parameters.

    A budget is a share or a number, such as ``0.2%``, ``100000`` or ``100_000``.

    Raises:
        ValueError: for any other text, a share above 100 %, and 0.
    """
    text = budget.strip()
    if text.endswith("%"):
        limit = _percent_of(total, text.removesuffix("%"))
    else:
        limit = _number_above_0(text)
    if limit is None:
        raise ValueError(
            f"budget {budget!r} is neither a share above 0% and up to 100%, such as 0.2%, nor a "
            "number of parameters above 0, such as 100000"
        )
    return limit


def _percent_of(total: int, text: str) -> int | None:
    """So many percent of a number, rounded down; None if the text says no percent up to 100."""
    try:
        percent = Decimal(text.strip())
    except InvalidOperation:
        return None
    if percent.is_finite() and 0 < percent <= 100:
        return int(total * percent / 100)
    return None


def _number_above_0(text: str) -> int | None:
    """A whole number above 0; None if the text is none."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number > 0 else None


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
    sizes = _Sizes(recipe, parts)
    with _without_warnings():
        first = sizes.first_that_can_be_built()
        smallest = sizes.counts_at(first)  # raises what is wrong if no size can be built
        limit = limit_of(budget, smallest["total"])
        if smallest["trainable"] > limit:
            return Sized(sizes.settings_at(first), smallest, above=True)
        best = _largest(sizes.trained_at, first, len(sizes), limit)
        return Sized(sizes.settings_at(best), sizes.counts_at(best), above=False)


class _Sizes:
    """The sizes of a method, from the smallest on, by an index.

    They are those of its leader, which has the most sizes below its default. Its other parts have
    the size that is in the ratio of their defaults to the leader's.
    """

    def __init__(self, recipe: Recipe, parts: Sequence["GrowingPart"]) -> None:
        self._recipe = recipe
        self._parts = parts
        self._leader = max(parts, key=lambda part: part.steps)

    def __len__(self) -> int:
        return len(self._leader.sizes)

    def settings_at(self, index: int) -> dict[str, Settings]:
        """The settings of all parts where the leader has the size with this index."""
        leader_size = self._leader.sizes[index]
        settings = dict(self._recipe.parts)
        for part in self._parts:
            if index == 0:  # the smallest of each, where ratios may round to larger ones
                size = part.sizes[0]
            elif part is self._leader:
                size = leader_size
            else:
                size = part.scaled(self._leader.scale(leader_size))
            settings[part.name] = part.at(size, self._recipe.parts.get(part.name, {}))
        return settings

    def counts_at(self, index: int) -> dict[str, Any]:
        """The parameters at an index, as ``parameters_of`` counts them."""
        return counts_of(self._recipe.model_copy(update={"parts": self.settings_at(index)}))

    def trained_at(self, index: int) -> int:
        """How many parameters train at an index; 0 if this size cannot be built."""
        try:
            return int(self.counts_at(index)["trainable"])
        except ValueError:
            return 0

    def first_that_can_be_built(self) -> int:
        """The smallest size that can be built: one of the first few, or else the default."""
        default: int = self._leader.sizes.index(self._leader.scaled(1.0))
        candidates: list[int] = [*range(min(NEAR, len(self))), default]
        for index in candidates:
            if self.trained_at(index):
                return index
        return default


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
        """How many parameters train at the next smaller size that can be built."""
        for near in range(index, max(first, index - NEAR) - 1, -1):
            number = trained(near)
            if number:
                return number
        return limit + 1

    # Each size costs the building of a model, and there may be thousands: steps that double find
    # an end above the limit, and halves between it and the first one find the largest below.
    high = first + 1
    while high < end and count(high) <= limit:
        high = first + 2 * (high - first)
    indices = range(first, min(high, end))
    best = indices[bisect_right(indices, limit, key=count) - 1]
    # LoKr's ranks have an end, beyond which sizes train no more: the smallest of them is taken.
    return first + bisect_left(indices, count(best), key=count)


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
        wanted = self.default * scale
        if self.name in FEWER_WHEN_LARGER:
            wanted = self.default / scale
        if isinstance(self.sizes, range):
            return min(max(round(wanted), self.sizes[0]), self.sizes[-1])
        return min(self.sizes, key=lambda size: abs(size - wanted))

    def at(self, size: int, fixed: Settings) -> Settings:
        """The settings that give a size, with those that the user fixed."""
        settings: Settings = {self.keys[0]: size}
        for key in self.keys[1:]:
            default = self.settings[key]
            if default is None:
                continue
            settings[key] = default * size / self.default
            if isinstance(default, int):  # LoRA's alpha, for one, has to be a whole number
                settings[key] = max(1, round(settings[key]))
        return {**settings, **fixed}


def growing_parts(recipe: Recipe) -> list[GrowingPart]:
    """The parts of a recipe's method that have a size, unless the recipe sets it."""
    method = method_named(recipe.method)
    if method.trainable is not None:  # it trains weights of the base, which have no size
        return []
    config = load_config(recipe.model)
    model_shape = ModelShape(config)
    method_settings = settings_for(choose_settings(method, config), recipe.parts, config)
    parts = []
    for name, settings in method_settings.items():
        part = _growing_part(name, settings, recipe, model_shape)
        if part is not None:
            parts.append(part)
    return parts


def _growing_part(
    name: str, own_settings: Settings, recipe: Recipe, model_shape: ModelShape
) -> GrowingPart | None:
    """A part and its sizes; None if it has no size, or the recipe sets it."""
    keys = size_settings(name)
    bound = BOUNDS.get(name)
    if own_settings.get("ablation") == "full_rank":  # a map without a rank grows by its length
        keys = ("length",)
        bound = "context"
    if not keys or keys[0] in recipe.parts.get(name, {}):
        return None

    # A bound may depend on the rank or the length, which may have the default of the part.
    fields = part_class(name).__dataclass_fields__
    needed = {*keys, "r", "length"} & fields.keys()
    defaults = {key: fields[key].default for key in needed}
    settings = {**defaults, **own_settings}
    if not settings[keys[0]]:
        return None
    sizes = model_shape.allowed(name, bound, settings).values
    if name in FEWER_WHEN_LARGER and isinstance(sizes, list):
        sizes = sizes[::-1]
    return GrowingPart(name, settings, keys, sizes)
