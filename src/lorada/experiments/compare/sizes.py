"""``size_for``: the largest size of a method that trains no more parameters than a budget."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Any

from lorada.experiments.compare.part_sizes import growing_parts
from lorada.experiments.table_spec import counts_of
from lorada.methods import build
from lorada.methods.method import Settings
from lorada.runs.recipe import Recipe

# How many sizes are tried on each side of one that cannot be built: ranks of GraLoRA must be even.
NEAR = 8
# How many guesses assume that the number of parameters is affine in the size.
LINES = 4


@dataclass(frozen=True)
class Budget:
    """How many parameters may train, without a task head.

    Attributes:
        text: the budget as it was given.
        percent: share of the base's parameters; None for a number.
        number: of parameters; None for a share.
    """

    text: str
    percent: Decimal | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read ``0.2%``, ``100000`` or ``100_000``.

        Raises:
            ValueError: for anything else, and for a budget of nothing or of more than 100 %.
        """
        plain = text.strip()
        try:
            if not plain.endswith("%"):
                number = int(plain)
                if number > 0:
                    return cls(plain, number=number)
            else:
                percent = Decimal(plain[:-1].strip())
                if percent.is_finite() and 0 < percent <= 100:
                    return cls(plain, percent=percent)
        except (ValueError, InvalidOperation):
            pass
        raise ValueError(
            f"budget {text!r} is neither a share above 0% and up to 100%, such as 0.2%, nor a "
            "number of parameters above 0, such as 100000"
        )

    def __str__(self) -> str:
        return self.text

    def limit(self, total: int) -> int:
        """The most parameters that may train on a base of ``total`` parameters."""
        return int(total * self.percent / 100) if self.percent is not None else self.number or 0


@dataclass(frozen=True)
class Sized:
    """A method at the size that was chosen for it.

    Attributes:
        parts: settings of parts that give this size, with those that the recipe had.
        counts: as ``parameters_of`` counts.
        above: whether it trains more than the budget, because there is no smaller size.
    """

    parts: dict[str, Settings]
    counts: dict[str, Any]
    above: bool


def size_for(recipe: Recipe, budget: Budget) -> Sized:
    """The largest size of a recipe's method that trains no more parameters than a budget.

    All parts of a stack grow together, in the ratio of their default sizes, each from its smallest
    size on. A size that the recipe sets stays as it is. A size that cannot be built, or trains no
    more than a smaller one, is left out. If even the smallest size is above the budget, it is
    taken. A method without a size stays as it is.

    Raises:
        ValueError: if the method cannot be built at any size.
    """
    parts = growing_parts(recipe)
    if not parts:
        counts = counts_of(recipe)
        above = counts["trainable"] > budget.limit(counts["total"])
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
        limit = budget.limit(smallest["total"])
        if smallest["trainable"] > limit:
            return Sized(overrides(first), smallest, above=True)
        best = _largest(trained, first, usual, len(leader.sizes), limit)
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


def _largest(trained: Callable[[int], int], first: int, usual: int, end: int, limit: int) -> int:
    """The index with the most trained parameters that are not above a limit.

    Mostly the number of parameters is affine in the size: a line through two known sizes gives the
    next guess. If that does not end soon, every other guess halves the range.

    Args:
        trained: how many parameters train at an index; 0 if it cannot be built.
        first: an index that is within the limit.
        usual: the index of the default size.
        end: all indices lie before it.
        limit: the most parameters.
    """
    known = {first: trained(first)}
    low, high = first, end  # low is within the limit, high is not
    guess, tries, flat = usual, 0, False
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        lowest = max(low + 1, guess - NEAR)
        near = chain(range(guess, lowest - 1, -1), range(guess + 1, min(high, guess + NEAR)))
        at = next(filter(trained, near), None)
        if at is not None:
            known[at] = trained(at)
            flat = flat or known[at] == known[low]
        if at is not None and known[low] < known[at] <= limit:
            low = at
        else:
            # If the one found lies beyond the guess, all from the lowest on cannot be built.
            high = at if at is not None and at <= guess else lowest
        tries += 1
        by_line = tries < LINES or tries % 2 == 0
        guess = _by_line(known, low, high, limit) if by_line else (low + high) // 2
    return _first_like(trained, first, low) if flat or low == end - 1 else low


def _first_like(trained: Callable[[int], int], first: int, index: int) -> int:
    """The first index that trains as many parameters as another: LoKr's ranks have an end."""
    if index == first or trained(index - 1) != trained(index):
        return index
    low, high = first - 1, index - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trained(middle) == trained(index) else (middle, high)
    return high


def _by_line(known: dict[int, int], low: int, high: int, limit: int) -> int:
    """The index where a line through ``low`` and the nearest other known one meets a limit."""
    others = [index for index in known if index != low]
    other = high if high in known else min(others, key=lambda i: abs(i - low), default=low)
    rise = (known[other] - known[low]) / (other - low) if other != low else 0.0
    return low + int((limit - known[low]) / rise) if rise > 0 else (low + high) // 2
