"""Checks what ``decide`` is given: scores, seeds, groups and costs; refuses the rest in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorada.decision.costs import COSTS, Costs
from lorada.decision.run_variances import Scores
from lorada.support.error_messages import unknown_name
from lorada.support.in_words import counted

MANY = 10  # runs that are no mistake where rows are fewer
LARGEST = 1e60  # of scores: the fourth power of a larger one is infinite


@dataclass(frozen=True)
class ScoreTables:
    """Scores as arrays, all with as many rows."""

    methods: dict[str, Scores]  # method → runs × rows; NaN in all rows of a run that diverged
    baselines: dict[str, Scores]  # name → draws × rows
    alternatives: dict[str, Scores]  # the same of what may be taken instead of a training

    def changed(self, change: Callable[[Scores], Scores]) -> "ScoreTables":
        """The tables with the same change to each."""
        return ScoreTables(
            {name: change(table) for name, table in self.methods.items()},
            {name: change(table) for name, table in self.baselines.items()},
            {name: change(table) for name, table in self.alternatives.items()},
        )

    @property
    def every(self) -> list[Scores]:
        """The tables of methods, then those without training."""
        return [*self.methods.values(), *self.without_training.values()]

    @property
    def without_training(self) -> dict[str, Scores]:
        """The tables of baselines and of alternatives."""
        return self.baselines | self.alternatives


def check_score_tables(
    scores: Mapping[str, ArrayLike],
    baselines: Mapping[str, ArrayLike],
    alternatives: Mapping[str, ArrayLike],
) -> ScoreTables:
    """Turn methods into arrays of runs × rows, and what needs no training into draws × rows.

    Raises:
        ValueError: without scores, for a name that is no text or is given twice, and what is no
            table of numbers, has other rows than the first method, or lacks scores of some rows.
    """
    _refuse_no_mapping("scores", scores, "method → seeds × rows")
    _refuse_no_mapping("baselines", baselines, "name → score of each row")
    _refuse_no_mapping("alternatives", alternatives, "name → score of each row")
    if not scores:
        raise ValueError("no scores are given: nothing can be decided")
    for name in (*scores, *baselines, *alternatives):
        _refuse_name(name)
    for name in alternatives:
        if name in baselines:
            raise ValueError(f"{name} is a baseline and an alternative: leave one of them out")
    tables = ScoreTables(
        {name: _as_numbers(name, table) for name, table in scores.items()},
        {name: _as_draws(name, row_scores) for name, row_scores in baselines.items()},
        {name: _as_draws(name, row_scores) for name, row_scores in alternatives.items()},
    )
    first = next(iter(tables.methods))
    # In this order: a table of another form has no rows to be compared.
    for name, table in [*tables.methods.items(), *tables.without_training.items()]:
        _refuse_other_shape(name, table)
        _refuse_other_rows(name, table, first, tables.methods[first])
        _refuse_too_large(name, table)
        _refuse_missing_scores(name, table, may_diverge=name in tables.methods)
    return tables


def _as_draws(name: str, row_scores: ArrayLike) -> Scores:
    """Scores without training as draws × rows: one draw, if they are of each row alone."""
    table = _as_numbers(name, row_scores)
    return table[None] if table.ndim == 1 else table


def _refuse_no_mapping(what: str, value: object, form: str) -> None:
    """Refuse what is no mapping from names."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} are a {type(value).__name__}: give {form}")


def _refuse_name(name: object) -> None:
    """Refuse a name that could not stand in a sentence: no text, an empty one, several lines."""
    is_one_line = isinstance(name, str) and bool(name.strip()) and len(name.splitlines()) == 1
    if not is_one_line:
        raise ValueError(f"a method is named {name!r}: give each a name that is a text")


def _as_numbers(name: str, scores: ArrayLike) -> Scores:
    """Scores as an array of floats, with NaN where one is missing; refuses what is no number."""
    try:
        if isinstance(scores, np.ma.MaskedArray):
            # What is masked is not there, whatever number stands under the mask.
            return np.asarray(np.ma.filled(scores.astype(float), np.nan))
        if np.iscomplexobj(scores):  # NumPy would drop the imaginary part
            raise TypeError
        return np.asarray(scores, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: scores are no table of numbers, seeds × rows") from error


def _refuse_other_shape(name: str, table: Scores) -> None:
    """Refuse an array that is not runs × rows, or empty."""
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name}: scores have the shape {table.shape}, not seeds × rows")


def _refuse_other_rows(name: str, table: Scores, first: str, first_table: Scores) -> None:
    """Refuse a table with another number of rows than that of the first method."""
    row_count, count_of_first = table.shape[1], first_table.shape[1]
    if row_count != count_of_first:
        raise ValueError(
            f"{name} has {row_count} rows and {first} has {count_of_first}: "
            "methods are compared on the same rows"
        )


def _refuse_too_large(name: str, table: Scores) -> None:
    """Refuse scores whose variances could not be computed."""
    finite = table[np.isfinite(table)]
    if np.abs(finite).max(initial=0.0) > LARGEST:
        raise ValueError(
            f"{name} has scores above {LARGEST:g}: give another unit, or no score (NaN) in all "
            "rows of a run that diverged"
        )


def _refuse_missing_scores(name: str, table: Scores, *, may_diverge: bool) -> None:
    """Refuse a run with scores of some rows alone, and one with none unless it may diverge."""
    is_finite = np.isfinite(table)
    for run, row in np.argwhere(~is_finite):
        if is_finite[run].any() or not may_diverge:
            raise ValueError(
                f"{name}, run {run + 1}: row {row + 1} has no score. Give each run a score of "
                "all rows, or of none if it diverged"
            )


def refuse_transposed(tables: Mapping[str, Scores], seeds: Mapping[str, Sequence[object]]) -> None:
    """Refuse rows × seeds, which looks like many runs of a few rows, and seeds in no mapping.

    A method whose seeds are given may have as many runs as it likes.
    """
    _refuse_no_mapping("seeds", seeds, "method → the seed of each run")
    for name, table in tables.items():
        run_count, row_count = table.shape
        if name not in seeds and run_count > max(row_count, MANY):
            raise ValueError(
                f"{name} has {run_count} runs of {counted(row_count, 'row')}: scores are seeds × "
                "rows, so transpose them, or give the seeds of the runs if there are so many"
            )


def group_numbers(groups: Sequence[object], row_count: int) -> list[int]:
    """The group of each row as a number, counted from 0 as groups are met first.

    Raises:
        ValueError: for groups of more or fewer rows, a row without a group, what is no name, and
            names that differ but look alike, such as 1 and "1".
    """
    groups = list(groups)
    if len(groups) != row_count:
        raise ValueError(f"{len(groups)} groups for {row_count} rows: give the group of each row")
    number_of_group: dict[object, int] = {}
    group_of_text: dict[str, object] = {}
    numbers = []
    for row, group in enumerate(groups, 1):
        try:
            number = number_of_group.setdefault(group, len(number_of_group))
            is_missing = group is None or bool(group != group)  # NaN
        except TypeError as error:  # a list, or pandas' NA
            raise ValueError(f"the group of row {row} is {group!r}: give a name") from error
        if is_missing:
            raise ValueError(f"row {row} has no group ({group}): give the group of each row")
        same_text = group_of_text.setdefault(str(group), group)
        if same_text != group:
            raise ValueError(
                f"the groups {same_text!r} and {group!r} look alike and differ: give all as texts, "
                "or all as numbers"
            )
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class SeedOrder:
    """The runs of a method that did not diverge, in the order of seeds that all methods share."""

    seeds: tuple[object, ...]
    places: list[int]  # of these runs among those that did not diverge


def seed_orders(
    seeds: Mapping[str, Sequence[object]], has_finished: Mapping[str, NDArray[np.bool_]]
) -> dict[str, SeedOrder]:
    """Put the runs of each method that did not diverge in an order of seeds that all share.

    Where no seeds are given, the number of a run is its seed.

    Args:
        seeds: method → the seed of each run; of some methods, or of none.
        has_finished: method → of each run, whether it did not diverge.

    Raises:
        ValueError: for seeds of an unknown method, and seeds that are not one for each
            run, or not all different.
    """
    for name in seeds:
        if name not in has_finished:
            raise unknown_name("method in the seeds", name, has_finished)
    # Seeds may be of any kind, so they are ordered by where each is met first.
    rank_of_seed: dict[object, int] = {}
    orders = {}
    for name, is_finished in has_finished.items():
        runs = len(is_finished)
        seeds_of_runs = _check_seeds(name, seeds.get(name, range(runs)), runs)
        finished_seeds = list(compress(seeds_of_runs, is_finished))
        for seed in finished_seeds:
            rank_of_seed.setdefault(seed, len(rank_of_seed))
        ranks = [rank_of_seed[seed] for seed in finished_seeds]
        places = sorted(range(len(ranks)), key=ranks.__getitem__)
        orders[name] = SeedOrder(tuple(finished_seeds[place] for place in places), places)
    return orders


def _check_seeds(name: str, seeds: Sequence[object], runs: int) -> tuple[object, ...]:
    """The seeds of a method's runs; refuses more or fewer than runs, and two that are equal."""
    seeds = tuple(seeds)
    try:
        different = len(set(seeds))
    except TypeError as error:  # a list, which cannot be in a set
        raise ValueError(f"the seeds of {name} are {list(seeds)}: give numbers") from error
    if not different == len(seeds) == runs:
        raise ValueError(f"{name} has {runs} runs, but the seeds {list(seeds)}")
    return seeds


def check_costs(costs: Costs, methods: Mapping[str, Scores]) -> None:
    """Refuse costs of unknown methods, of unknown kinds, and what is no number."""
    _refuse_no_mapping("costs", costs, "method → parameters, seconds, bytes")
    for name, costs_of_method in costs.items():
        if name not in methods:
            raise unknown_name("method in the costs", name, methods)
        if not isinstance(costs_of_method, Mapping):
            kinds = ", ".join(COSTS)
            raise ValueError(
                f"the costs of {name} are {costs_of_method!r}: give numbers of {kinds}"
            )
        for kind, value in costs_of_method.items():
            if kind not in COSTS:
                raise unknown_name(f"cost of {name}", kind, COSTS)
            checked_number(value, f"{kind} of {name} is {value!r}: give a number of at least 0")


def checked_number(value: object, error: str) -> float:
    """A number that a user gives, such as a cost or a margin, as a float.

    Raises:
        ValueError: with the text ``error``, for what is no number, a truth value (which Python
            counts as 0 or 1), and what is negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(error)
    try:
        number = float(value)
    except OverflowError:  # of a whole number with hundreds of digits
        number = np.inf
    if not 0 <= number < np.inf:
        raise ValueError(error)
    return number


def one_row_error(row_count: int) -> str:
    """Why one independent row is not enough: of several rows in one group, or of one row."""
    if row_count > 1:
        return "1 independent row of scores, as all rows are in one group: a test needs two or more"
    return (
        "1 independent row of scores: a test needs the score of each row (such as the BLEU of each "
        "sentence, not of all), as other rows would give another score"
    )
