"""What the pick gains and loses at smaller scales of its adapter, beside the scale of 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, ScoredRun, main_metric_on
from lorada.compare.retention import Interval, KeptTables, intervals_of, losses_on, read_base
from lorada.compare.stored_losses import ScaledRun, saved_scales
from lorada.decision.run_variances import Scores
from lorada.runs.result import Prediction, at_scale, read_predictions
from lorada.support.metric_names import as_score, rows_metric


@dataclass(frozen=True)
class ScaleFinding:
    """What a method does at a smaller scale of its adapter.

    Attributes:
        scale: of the adapter; 1 is what was trained.
        gain: points, or what scores count, above the best score without training.
        gain_change: how much more that is than at the scale of 1.
        lost: growth of the loss on the rows to keep, in nats a token.
        lost_change: how much more that is than at the scale of 1.
        share: of the gain that stays; None where no gain is shown at 1.
    """

    scale: float
    gain: Interval
    gain_change: Interval
    lost: Interval
    lost_change: Interval
    share: float | None


@dataclass(frozen=True)
class ScaleFindings:
    """What a method does at smaller scales; or why that is not known."""

    method: str
    at: tuple[ScaleFinding, ...] = ()
    reason: str = ""


def find_scales(
    results: Results,
    pick: CandidateResult,
    tables: KeptTables,
    without_training: Scores | None,
    *,
    share: bool,
) -> ScaleFindings | None:
    """What the pick does at smaller scales; None where it was not scored there.

    Args:
        results: the comparison.
        pick: one of its candidates.
        tables: what all candidates have lost.
        without_training: of each held-out row, the best score without training.
        share: whether scores lie between 0 and 100.
    """
    stored = [saved_scales(results.folder / run.folder) for run in pick.runs]
    scaled_runs = [scaled for scaled in stored if scaled is not None]
    if len(scaled_runs) < len(pick.runs) or pick.label not in tables.growth:
        return None
    reasons = [scaled.reason for scaled in scaled_runs if scaled.reason]
    if reasons:
        return ScaleFindings(pick.label, reason=reasons[0])
    if without_training is None or len(tables.growth[pick.label]) < len(pick.runs):
        return None
    findings = []
    for place, losses in enumerate(scaled_runs[0].at):
        scores = _scores_at(results, pick, losses.scale)
        growth = _growth_at(results, scaled_runs, place)
        if scores is None or growth is None:
            continue
        findings.append(
            _finding(
                losses.scale,
                _Differences(scores - without_training, growth),
                _Differences(pick.scores - without_training, tables.growth[pick.label]),
                _Rows(results.groups, tables.groups, share),
            )
        )
    return ScaleFindings(pick.label, tuple(findings)) if findings else None


@dataclass(frozen=True, eq=False)
class _Differences:
    """Of each run: what its rows gain, and what those to keep lose."""

    gains: Scores
    growth: Scores


@dataclass(frozen=True)
class _Rows:
    """What has to be known of the rows for an interval."""

    groups: Sequence[str] | None  # of the held-out rows
    kept_groups: Sequence[str] | None
    share: bool  # whether held-out rows have scores between 0 and 100


def _finding(scale: float, here: _Differences, whole: _Differences, rows: _Rows) -> ScaleFinding:
    """The finding at a scale; ``whole`` is at the scale of 1, with the same runs and rows."""
    gains = {"here": here.gains, "whole": whole.gains}
    of_gains = intervals_of(gains, rows.groups, share=rows.share)
    of_losses = intervals_of({"here": here.growth}, rows.kept_groups)
    gain_changes = {"change": here.gains - whole.gains}
    gain_change = intervals_of(gain_changes, rows.groups, share=rows.share)
    lost_change = intervals_of({"change": here.growth - whole.growth}, rows.kept_groups)
    share = None
    if of_gains["whole"].low > 0:
        share = of_gains["here"].value / of_gains["whole"].value
    return ScaleFinding(
        scale, of_gains["here"], gain_change["change"], of_losses["here"], lost_change["change"],
        share,
    )  # fmt: skip


def _growth_at(results: Results, runs: Sequence[ScaledRun], place: int) -> Scores | None:
    """Runs × rows to keep: the loss at a scale less that of the base; None if any is missing."""
    base = read_base(results)
    growth = []
    for run in runs:
        losses = losses_on(run.at[place].kept, base.rows) if place < len(run.at) else None
        if losses is None:
            return None
        growth.append(losses - base.losses)
    return np.array(growth)


def _scores_at(results: Results, pick: CandidateResult, scale: float) -> Scores | None:
    """Runs × held-out rows, higher for the better one; None if any run lacks a score there."""
    scores = []
    for run in pick.runs:
        predictions = _predictions_of(results, run)
        row_scores = []
        for name, number in results.rows:
            by = rows_metric(results.metric or main_metric_on(name, run.result))
            prediction = predictions.get((at_scale(name, scale), number))
            value = None if prediction is None else prediction.metrics_and_loss.get(by)
            if value is None:
                return None
            row_scores.append(results.own_unit.factor * as_score(value, by))
        scores.append(row_scores)
    return np.array(scores)


def _predictions_of(results: Results, run: ScoredRun) -> dict[tuple[str, int], Prediction]:
    """All predictions of a run, by the name of the rows and their number."""
    predictions = read_predictions(results.folder / run.folder)
    return {(prediction.rows, prediction.row): prediction for prediction in predictions}
