"""Checks what ``decide`` is given: scores, seeds, groups and costs; refuses the rest in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from lorada.decision.decision_sentence import COSTS, Costs
from lorada.decision.run_variances import Scores
from lorada.support.error_messages import unknown_name
from lorada.support.in_words import counted

MANY = 10  # runs that are no mistake where rows are fewer
LARGEST = 1e60  # of scores: the fourth power of a larger one is infinite


def score_tables(
    scores: Mapping[str, ArrayLike], baselines: Mapping[str, ArrayLike]
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Methods and baselines as arrays of runs × rows, all with as many rows."""
    refuse_no_mapping("scores", scores, "method → seeds × rows")
    refuse_no_mapping("baselines", baselines, "name → score of each row")
    if not scores:
        raise ValueError("no scores are given: nothing can be decided")
    for name in (*scores, *baselines):
        if not isinstance(name, str) or not name.strip() or len(name.splitlines()) > 1:
            raise ValueError(f"a method is named {name!r}: give each a name that is a text")
    tables = {name: _numbers(name, one) for name, one in scores.items()}
    fixed = {name: _numbers(name, one)[None] for name, one in baselines.items()}
    for name, table in fixed.items():
        if table.ndim != 2:
            raise ValueError(f"{name}: a baseline has one score of each row, not {table.shape[1:]}")
    first, rows = next((name, table.shape[-1:]) for name, table in tables.items())
    for name, table in [*tables.items(), *fixed.items()]:
        if table.ndim != 2 or not table.size:
            raise ValueError(f"{name}: scores have the shape {table.shape}, not seeds × rows")
        if table.shape[1:] != rows:
            raise ValueError(
                f"{name} has {table.shape[1]} rows and {first} has {rows[0]}: "
                "methods are compared on the same rows"
            )
        finite = np.isfinite(table)
        if np.abs(table[finite]).max(initial=0.0) > LARGEST:
            raise ValueError(
                f"{name} has scores above {LARGEST:g}: give another unit, or no score (NaN) in all "
                "rows of a run that diverged"
            )
        for run, row in np.argwhere(~finite):
            if finite[run].any() or name in fixed:
                raise ValueError(
                    f"{name}, run {run + 1}: row {row + 1} has no score. Give each run a score of "
                    "all rows, or of none if it diverged"
                )
    return tables, fixed


def _numbers(name: str, scores: ArrayLike) -> Scores:
    try:
        if isinstance(scores, np.ma.MaskedArray):
            # What is masked is not there, whatever number stands under the mask.
            return np.asarray(np.ma.filled(scores.astype(float), np.nan))
        if np.iscomplexobj(scores):
            raise TypeError
        return np.asarray(scores, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: scores are no table of numbers, seeds × rows") from error


def refuse_no_mapping(what: str, value: object, form: str) -> None:
    """Refuse what is no mapping from names."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} are a {type(value).__name__}: give {form}")


def refuse_transposed(tables: Mapping[str, Scores], seeds: Mapping[str, Sequence[object]]) -> None:
    """Refuse rows × seeds, which looks like many runs of a few rows."""
    refuse_no_mapping("seeds", seeds, "method → the seed of each run")
    for name, table in tables.items():
        runs, rows = table.shape
        if name not in seeds and runs > max(rows, MANY):
            raise ValueError(
                f"{name} has {runs} runs of {counted(rows, 'row')}: scores are seeds × rows, so "
                "transpose them, or give the seeds of the runs if there are so many"
            )


def group_places(groups: Sequence[object], rows: int) -> list[int]:
    """The group of each row as a number."""
    groups = list(groups)
    if len(groups) != rows:
        raise ValueError(f"{len(groups)} groups for {rows} rows: give the group of each row")
    places: dict[object, int] = {}
    spellings: dict[str, object] = {}
    found = []
    for row, group in enumerate(groups, 1):
        try:
            place = places.setdefault(group, len(places))
            is_missing = group is None or bool(group != group)  # NaN
        except TypeError as error:  # a list, or pandas' NA
            raise ValueError(f"the group of row {row} is {group!r}: give a name") from error
        if is_missing:
            raise ValueError(f"row {row} has no group ({group}): give the group of each row")
        other = spellings.setdefault(str(group), group)
        if other != group:
            raise ValueError(
                f"the groups {other!r} and {group!r} look alike and differ: give all as texts, or "
                "all as numbers"
            )
        found.append(place)
    return found


@dataclass(frozen=True)
class SeedOrder:
    """The runs of a method that did not diverge, in the order of seeds that all methods share."""

    seeds: tuple[object, ...]
    places: list[int]  # of these runs among those that did not diverge


def seed_orders(
    given: Mapping[str, Sequence[object]], runs_finished: Mapping[str, Scores]
) -> dict[str, SeedOrder]:
    """The seeds of the runs that did not diverge; their places where none are given."""
    for name in given:
        if name not in runs_finished:
            raise unknown_name("method in the seeds", name, runs_finished)
    rank: dict[object, int] = {}  # seed → its place, of any order, but one for all methods
    orders = {}
    for name, finished in runs_finished.items():
        seeds = tuple(given.get(name, range(len(finished))))
        try:
            count = len(set(seeds))
        except TypeError as error:
            raise ValueError(f"the seeds of {name} are {list(seeds)}: give numbers") from error
        if not count == len(seeds) == len(finished):
            raise ValueError(f"{name} has {len(finished)} runs, but the seeds {list(seeds)}")
        left = [seed for seed, keep in zip(seeds, finished, strict=True) if keep]
        for seed in left:
            rank.setdefault(seed, len(rank))
        places = sorted(range(len(left)), key=lambda place: rank[left[place]])
        orders[name] = SeedOrder(tuple(left[place] for place in places), places)
    return orders


def check_costs(given: Costs, methods: Mapping[str, Scores]) -> None:
    """Refuse costs of unknown methods, of unknown kinds, and what is no number."""
    refuse_no_mapping("costs", given, "method → parameters, seconds, bytes")
    for name, costs in given.items():
        if name not in methods:
            raise unknown_name("method in the costs", name, methods)
        if not isinstance(costs, Mapping):
            kinds = ", ".join(COSTS)
            raise ValueError(f"the costs of {name} are {costs!r}: give numbers of {kinds}")
        for kind, value in costs.items():
            if kind not in COSTS:
                raise unknown_name(f"cost of {name}", kind, COSTS)
            checked_number(value, f"{kind} of {name} is {value!r}: give a number of at least 0")


def checked_number(value: object, error: str) -> float:
    """A number of at least 0; ``error`` is said of another value."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(error)
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not 0 <= number < np.inf:
        raise ValueError(error)
    return number


def one_row_error(rows: int) -> str:
    """Why one row, or one group of rows, is not enough."""
    if rows > 1:
        return "1 independent row of scores, as all rows are in one group: a test needs two or more"
    return (
        "1 independent row of scores: a test needs the score of each row (such as the BLEU of each "
        "sentence, not of all), as other rows would give another score"
    )
