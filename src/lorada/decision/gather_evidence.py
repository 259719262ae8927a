"""Makes the evidence of a decision from what ``decide`` is given, in one form and unit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lorada.decision.check_scores import (
    ScoreTables,
    check_costs,
    checked_number,
    group_numbers,
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
    tables: ScoreTables,
    costs: Costs,
    margin: float | None,
    lower_is_better: bool,
    groups: Sequence[object] | None,
    seeds: Mapping[str, Sequence[object]],
    unit: str | None,
) -> Evidence:
    """Check what ``decide`` is given, and bring it into one form, unit, direction and order.

    Scores change in four steps: runs that diverged are left out, a factor makes them percent if
    they are shares, a power of two makes very small ones larger (``zoom_of``), and the sign of
    losses and errors is turned. Rows in groups become scores of groups last (``by_group``).
    See ``decide`` for the arguments.

    Raises:
        ValueError: for what ``decide`` refuses.
    """
    if unit is not None and not isinstance(unit, str):
        raise ValueError(f"unit={unit!r}: give a text, such as %")
    unit_of_user = None if unit is None else named_unit(unit)
    row_count = next(iter(tables.methods.values())).shape[1]
    refuse_transposed(tables.methods, seeds)
    check_costs(costs, tables.methods)

    # A run that diverged has no score at all (others are refused), so its first row tells.
    has_finished = {name: np.isfinite(table[:, 0]) for name, table in tables.methods.items()}
    finished = _without_diverged(tables, has_finished)
    score_unit = _unit_of_scores(finished, unit_of_user, lower_is_better=lower_is_better)
    in_unit = finished.changed(lambda table: score_unit.factor * table)
    # Percent are never so small that differences between methods look like rounding errors.
    zoom = 1.0 if score_unit.name == PERCENT else zoom_of(in_unit.every)
    zoomed = in_unit.changed(lambda table: zoom * table)
    # A margin and right and wrong are those of the scores as users know them: not yet turned.
    zoomed_margin = _zoomed_margin(margin, zoomed, zoom, score_unit, lower_is_better)
    all_right_or_wrong = all(right_or_wrong(table) for table in zoomed.methods.values())

    # From here on higher scores are better, until they are shown.
    scale = ShownScale(score_unit.name, lower_is_better, zoom)
    turned = zoomed.changed(lambda table: scale.sign * table)
    independent = _independent_scores(turned, groups, row_count)
    # Runs stand in one order of seeds, so that run i of two methods may be a pair.
    orders = seed_orders(seeds, has_finished)
    return Evidence(
        scores={name: table[orders[name].places] for name, table in independent.methods.items()},
        seeds={name: order.seeds for name, order in orders.items()},
        baselines=independent.baselines,
        alternatives=independent.alternatives,
        runs={name: len(finished_runs) for name, finished_runs in has_finished.items()},
        diverged=_count_diverged(has_finished),
        costs=costs,
        margin=zoomed_margin,
        margin_is_own=margin is not None,
        scale=scale,
        right_or_wrong=all_right_or_wrong,
        row_count=row_count,
    )


def _without_diverged(
    tables: ScoreTables, has_finished: Mapping[str, NDArray[np.bool_]]
) -> ScoreTables:
    """The tables without runs that diverged, and without methods all of whose runs did."""
    methods = {}
    for name, table in tables.methods.items():
        if has_finished[name].any():
            methods[name] = table[has_finished[name]]
    return replace(tables, methods=methods)


def _count_diverged(has_finished: Mapping[str, NDArray[np.bool_]]) -> dict[str, int]:
    """How many runs of each method diverged; without methods none of whose runs did."""
    diverged = {}
    for name, finished in has_finished.items():
        if not finished.all():
            diverged[name] = int((~finished).sum())
    return diverged


def _unit_of_scores(
    tables: ScoreTables, unit_of_user: ScoreUnit | None, *, lower_is_better: bool
) -> ScoreUnit:
    """The unit that the user names, or what the scores tell of it.

    Args:
        tables: of the runs that did not diverge, as they are given.
        unit_of_user: the unit that is named; None if the user says nothing.
        lower_is_better: whether scores are losses or errors.

    Raises:
        ValueError: for shares of one (0.83) beside percent (83), also where the unit is named.
    """
    name_of_user = None if unit_of_user is None else unit_of_user.name
    tables_by_name = {**tables.methods, **tables.without_training}
    refuse_mixed(tables_by_name, name_of_user, lower_is_better=lower_is_better)
    # What the user says is never corrected by a guess from the scores.
    if unit_of_user is not None:
        return unit_of_user
    if lower_is_better:  # a loss between 0 and 1 is no share
        return UNKNOWN
    return unit_of(tables.methods.values(), tables.without_training.values())


def _independent_scores(
    tables: ScoreTables, groups: Sequence[object] | None, row_count: int
) -> ScoreTables:
    """The scores of rows that are independent: of each row, or of each group (``by_group``).

    Raises:
        ValueError: for fewer than two independent rows, and groups that are not one for each row.
    """
    if groups is None:
        if row_count < 2:
            raise ValueError(one_row_error(row_count))
        return tables
    group_of_row = group_numbers(groups, row_count)
    if len(set(group_of_row)) < 2:
        raise ValueError(one_row_error(row_count))
    return tables.changed(lambda table: by_group(table, group_of_row))


def _zoomed_margin(
    margin: float | None,
    zoomed: ScoreTables,
    zoom: float,
    score_unit: ScoreUnit,
    lower_is_better: bool,
) -> float | None:
    """What a cheaper method may cost, multiplied as the scores are: the user's, or the default.

    Args:
        margin: of the user, in the unit of the scores; None if not given.
        zoomed: the scores in their unit, multiplied by ``zoom``.
        zoom: by which the scores are multiplied.
        score_unit: of the scores.
        lower_is_better: whether they are losses or errors.

    Returns:
        None where the user gives none and there is no default in this unit.

    Raises:
        ValueError: for a margin that is negative or no number.
    """
    if margin is None:
        return default_margin(
            zoomed.methods.values(), score_unit.name, lower_is_better=lower_is_better
        )
    error = f"margin={margin} is no number of points: give 0 or more"
    return zoom * checked_number(margin, error)
