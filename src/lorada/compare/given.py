"""Scores as they are given to a decision: checked, and then all with higher better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from lorada.compare.statistics import Scores, by_group
from lorada.support.errors import unknown_name

COSTS = ("parameters", "seconds", "bytes")  # what counts first, then what decides between equals
MARGIN = 1.0  # points that a cheaper method may cost
LOSS_MARGIN = 0.02  # of the lowest loss: the same for losses
CONFIDENCE = 0.9  # that a cheaper method costs no more than the margin, one-sided

Costs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Given:
    """What a decision is made from, by the name of the method.

    Attributes:
        scores: seeds × rows (or groups of rows) of the runs that did not diverge; higher is better.
        seeds: the seeds of these runs.
        baselines: name → score of each row (or group) without training; higher is better.
        runs: how many there are, those that diverged too.
        diverged: how many diverged, if any did.
        costs: as given.
        margin: that a cheaper method may cost.
        unit: of the scores.
        sign: -1 if scores are losses or errors, else 1.
        unseen: the share of rows, in percent, on which two methods may differ though none of these
            rows shows it; 0 where scores are not right or wrong.
    """

    scores: dict[str, Scores]
    seeds: dict[str, tuple[object, ...]]
    baselines: dict[str, Scores]
    runs: dict[str, int]
    diverged: dict[str, int]
    costs: Costs
    margin: float
    unit: str
    sign: int
    unseen: float


def checked(
    scores: Mapping[str, ArrayLike],
    costs: Costs,
    margin: float | None,
    lower_is_better: bool,
    groups: Sequence[object] | None,
    baselines: Mapping[str, ArrayLike],
    seeds: Mapping[str, Sequence[object]],
    unit: str | None,
) -> Given:
    """What is given, in one form; see ``decide``, also for what is raised."""
    tables, fixed = _tables(scores, baselines)
    _check_costs(costs, tables)
    whole = {name: np.isfinite(table[:, 0]) for name, table in tables.items()}
    finished = {name: table[whole[name]] for name, table in tables.items() if whole[name].any()}
    scale = 1.0
    if unit is None:
        unit, scale = ("", 1.0) if lower_is_better else _percent([*finished.values()])
    sign = -1 if lower_is_better else 1
    finished, fixed = (_each(one, lambda table: sign * scale * table) for one in (finished, fixed))
    right_or_wrong = all(np.isin(table, (0.0, 100.0)).all() for table in finished.values())
    rows = next(iter(tables.values())).shape[1]
    if groups is not None:
        if len(groups) != rows:
            raise ValueError(f"{len(groups)} groups for {rows} rows: give the group of each row")
        finished, fixed = (_each(one, lambda t: by_group(t, groups)) for one in (finished, fixed))
        rows = len(set(groups))
    if rows < 2:
        raise ValueError(f"{rows} independent row of scores: nothing can be told from fewer than 2")
    if margin is None:
        best = max((float(table.mean()) for table in finished.values()), default=0.0)
        margin = LOSS_MARGIN * abs(best) if lower_is_better else MARGIN
    if not 0 <= margin < np.inf:
        raise ValueError(f"margin={margin} is no number of points: give 0 or more")
    return Given(
        scores=finished,
        seeds=_seeds(seeds, whole),
        baselines={name: one[0] for name, one in fixed.items()},
        runs={name: len(one) for name, one in whole.items()},
        diverged={name: int((~one).sum()) for name, one in whole.items() if not one.all()},
        costs=costs,
        margin=float(margin),
        unit=unit,
        sign=sign,
        unseen=100 * (1 - (1 - CONFIDENCE) ** (1 / rows)) if right_or_wrong else 0.0,
    )


def _each(tables: Mapping[str, Scores], change: Callable[[Scores], Scores]) -> dict[str, Scores]:
    return {name: change(table) for name, table in tables.items()}


def _tables(
    scores: Mapping[str, ArrayLike], baselines: Mapping[str, ArrayLike]
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Methods and baselines as arrays of runs × rows, all with as many rows."""
    if not scores:
        raise ValueError("no scores are given: nothing can be decided")
    tables = {name: np.asarray(one, dtype=float) for name, one in scores.items()}
    fixed = {name: np.asarray(one, dtype=float)[None] for name, one in baselines.items()}
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
        for run, row in np.argwhere(~finite):
            if finite[run].any() or name in fixed:
                raise ValueError(
                    f"{name}, run {run + 1}: row {row + 1} has no score. Give each run a score of "
                    "all rows, or of none if it diverged"
                )
    return tables, fixed


def _percent(tables: Sequence[Scores]) -> tuple[str, float]:
    """The unit of scores, and what makes percent of them: shares and percent are told by range."""
    low = min((table.min() for table in tables), default=0.0)
    high = max((table.max() for table in tables), default=100.0)
    return ("", 1.0) if low < 0 or high > 100 else ("%", 100.0 if high <= 1 else 1.0)


def _seeds(
    given: Mapping[str, Sequence[object]], whole: Mapping[str, Scores]
) -> dict[str, tuple[object, ...]]:
    """The seeds of the runs that did not diverge; their places where none are given."""
    found = {}
    for name, finished in whole.items():
        seeds = tuple(given.get(name, range(len(finished))))
        if len(set(seeds)) != len(finished):
            raise ValueError(f"{name} has {len(finished)} runs, but the seeds {list(seeds)}")
        found[name] = tuple(seed for seed, keep in zip(seeds, finished, strict=True) if keep)
    return found


def _check_costs(given: Costs, methods: Mapping[str, Scores]) -> None:
    for name, costs in given.items():
        if name not in methods:
            raise unknown_name("method in the costs", name, methods)
        for kind, value in costs.items():
            if kind not in COSTS:
                raise unknown_name(f"cost of {name}", kind, COSTS)
            if not isinstance(value, Real) or not 0 <= float(value) < np.inf:
                raise ValueError(f"{kind} of {name} is {value!r}: give a number of at least 0")
