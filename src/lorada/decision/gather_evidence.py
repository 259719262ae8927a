"""Makes the evidence of a decision from what ``decide`` is given, in one form and unit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lorada.decision.check_scores import (
    ScoreTables,
    check_costs,
    check_score_tables,
    checked_number,
    group_places,
    one_row_error,
    refuse_transposed,
    seed_orders,
)
from lorada.decision.costs import Costs
from lorada.decision.evidence import Evidence, ShownScale
from lorada.decision.score_units import (
    PERCENT,
    UNKNOWN,
    ScoreUnit,
    default_margin,
    named_unit,
    refuse_mixed,
    right_or_wrong,
    unit_of,
    zoom_of,
)
from lorada.decision.statistics import by_group


def gather_evidence(
    scores: Mapping[str, ArrayLike],
    costs: Costs,
    margin: float | None,
    lower_is_better: bool,
    groups: Sequence[object] | None,
    baselines: Mapping[str, ArrayLike],
    alternatives: Mapping[str, ArrayLike],
    seeds: Mapping[str, Sequence[object]],
    unit: str | None,
) -> Evidence:
    """What is given, checked and in one form; see ``decide``."""
    if unit is not None and not isinstance(unit, str):
        raise ValueError(f"unit={unit!r}: give a text, such as %")
    named = None if unit is None else named_unit(unit)
    tables = check_score_tables(scores, baselines, alternatives)
    rows = next(iter(tables.methods.values())).shape[1]
    refuse_transposed(tables.methods, seeds)
    check_costs(costs, tables.methods)

    # A run that diverged has no score at all, so the first row tells.
    has_finished = {name: np.isfinite(table[:, 0]) for name, table in tables.methods.items()}
    finished = _without_diverged(tables, has_finished)
    score_unit = _score_unit(finished, named, lower_is_better=lower_is_better)
    in_unit = finished.changed(lambda table: score_unit.factor * table)
    zoom = 1.0 if score_unit.name == PERCENT else zoom_of(in_unit.every)
    zoomed = in_unit.changed(lambda table: zoom * table)
    # A margin and right and wrong are those of the scores as users know them: not yet turned.
    if margin is None:
        zoomed_margin = default_margin(
            zoomed.methods.values(), score_unit.name, lower_is_better=lower_is_better
        )
    else:
        error = f"margin={margin} is no number of points: give 0 or more"
        zoomed_margin = zoom * checked_number(margin, error)
    all_right_or_wrong = all(right_or_wrong(table) for table in zoomed.methods.values())

    # From here on higher scores are better, until they are shown.
    scale = ShownScale(score_unit.name, lower_is_better, zoom)
    turned = zoomed.changed(lambda table: scale.sign * table)
    independent_rows = rows
    if groups is not None:
        places = group_places(groups, rows)
        turned = turned.changed(lambda table: by_group(table, places))
        independent_rows = len(set(places))
    if independent_rows < 2:
        raise ValueError(one_row_error(rows))
    orders = seed_orders(seeds, has_finished)
    return Evidence(
        scores={name: table[orders[name].places] for name, table in turned.methods.items()},
        seeds={name: order.seeds for name, order in orders.items()},
        baselines=turned.baselines,
        alternatives=turned.alternatives,
        runs={name: len(finished_runs) for name, finished_runs in has_finished.items()},
        diverged=_count_diverged(has_finished),
        costs=costs,
        margin=zoomed_margin,
        margin_is_own=margin is not None,
        scale=scale,
        right_or_wrong=all_right_or_wrong,
        rows=rows,
    )


def _without_diverged(
    tables: ScoreTables, has_finished: Mapping[str, np.typing.NDArray[np.bool_]]
) -> ScoreTables:
    """The tables without runs that diverged, and without methods all of whose runs did."""
    methods = {}
    for name, table in tables.methods.items():
        if has_finished[name].any():
            methods[name] = table[has_finished[name]]
    return replace(tables, methods=methods)


def _count_diverged(has_finished: Mapping[str, np.typing.NDArray[np.bool_]]) -> dict[str, int]:
    """How many runs of each method diverged; without methods none of whose runs did."""
    diverged = {}
    for name, finished in has_finished.items():
        if not finished.all():
            diverged[name] = int((~finished).sum())
    return diverged


def _score_unit(
    tables: ScoreTables, named: ScoreUnit | None, *, lower_is_better: bool
) -> ScoreUnit:
    """The unit of the scores: the one that is named, or what the scores tell of it."""
    refuse_mixed(
        {**tables.methods, **tables.without_training},
        None if named is None else named.name,
        lower_is_better=lower_is_better,
    )
    if named is not None:
        return named
    if lower_is_better:  # a loss between 0 and 1 is no share
        return UNKNOWN
    return unit_of(tables.methods.values(), tables.without_training.values())
