"""The pick on half and on a quarter of the training rows: what the last doubling of them brought.

Its runs on fewer rows take as many steps as its final runs, at the same rate, so that only the rows
differ. What more rows than there are would bring is not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, ScoredRun, read_run
from lorada.compare.stored_plan import CURVE, Candidate, is_scored
from lorada.decision.more_rows import gain_from_rows
from lorada.decision.run_variances import Scores
from lorada.support.metric_names import as_score

HALVINGS = (1, 2)  # half of the training rows, and a quarter of them
CURVE_SEEDS = 2  # of the runs on each of them


@dataclass(frozen=True)
class CurvePoint:
    """The pick trained on so many rows.

    Attributes:
        rows: that it learned from.
        seeds: of its runs.
        score: their mean on the held-out rows, in the unit of the metric.
    """

    rows: int
    seeds: int
    score: float


@dataclass(frozen=True)
class Curve:
    """What the pick scores after training on fewer rows.

    Attributes:
        method: the label of the pick.
        points: from the fewest rows to all of them.
        gain: of all training rows over half of them, in the unit of the metric; of losses and
            errors by how much they are lower.
        low: the lower end of its 95 % confidence interval.
        high: the upper end.
    """

    method: str
    points: tuple[CurvePoint, ...]
    gain: float
    low: float
    high: float


def curve_run(candidate: Candidate, halvings: int, seed: int) -> str:
    """The folder of a run on half of the training rows, or less, relative to the comparison's."""
    return f"{CURVE}/{candidate.path}/{2**halvings}/seed{seed}"


def place_of(results: Results, label: str) -> int | None:
    """The place in the plan of a candidate with runs of two seeds; None if it has fewer."""
    for place, candidate in enumerate(results.candidates):
        if candidate.label == label and len(candidate.runs) >= CURVE_SEEDS:
            return place
    return None


def seeds_of(pick: CandidateResult) -> list[int]:
    """The seeds that its runs on fewer rows take: the lowest of its final runs."""
    return sorted(run.seed for run in pick.runs)[:CURVE_SEEDS]


def read_curve(results: Results, best: str, metric: str) -> Curve | None:
    """What the pick scores after training on fewer rows; None unless all of it is measured.

    Args:
        results: the comparison.
        best: the label of the pick; empty if there is none.
        metric: what methods are compared by.
    """
    place = place_of(results, best)
    if place is None:
        return None
    pick, planned = results.candidates[place], results.plan.candidates[place]
    tables, points = [], []
    for halvings in HALVINGS:
        runs = _runs_on_fewer(results, planned, halvings, seeds_of(pick))
        if len(runs) < CURVE_SEEDS or runs[0].result.data is None:
            return None
        table = _scores_of(results, runs)
        tables.append(table)
        points.append(_point(runs[0].result.data.rows, table, metric))
    half, quarter = tables
    others = [one.scores for one in results.candidates if one.runs and one is not pick]
    gain = gain_from_rows(pick.scores, half, [quarter, *others], results.groups)
    low, high = gain.interval()
    all_rows = _point(results.plan.train.rows, pick.scores, metric)
    return Curve(best, (*reversed(points), all_rows), gain.value, low, high)


def _runs_on_fewer(
    results: Results, candidate: Candidate, halvings: int, seeds: Sequence[int]
) -> list[ScoredRun]:
    """The finished runs on fewer rows, if they are scored on the rows of the final runs."""
    runs = []
    for seed in seeds:
        name = curve_run(candidate, halvings, seed)
        if not is_scored(results.folder / name):
            continue
        run = read_run(results.folder, name, seed, list(results.plan.held_out), results.metric)
        if run.scores.keys() == set(results.rows):
            runs.append(run)
    return runs


def _scores_of(results: Results, runs: Sequence[ScoredRun]) -> Scores:
    """Seeds × rows, in the order and the unit of the scores of candidates."""
    table = np.array([list(map(run.scores.__getitem__, results.rows)) for run in runs])
    scores: Scores = results.own_unit.factor * table
    return scores


def _point(rows: int, scores: Scores, metric: str) -> CurvePoint:
    return CurvePoint(rows, len(scores), as_score(float(scores.mean()), metric))
