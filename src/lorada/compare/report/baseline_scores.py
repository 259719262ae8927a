"""Scores without training, as a report shows them beside the candidates."""

from dataclasses import dataclass

import numpy as np

from lorada.compare.read_results import Results
from lorada.compare.report.score_scale import PERCENT, Scale, scale_of
from lorada.compare.stored_plan import Untrained
from lorada.decision.run_variances import Scores
from lorada.decision.statistics import by_group, mean_score
from lorada.support.in_words import answer_in_words
from lorada.support.metric_names import ERROR, as_score, rows_metric

AS_IT_IS, COMMONEST = "as_it_is", "commonest"  # as ``baselines.json`` names them


@dataclass(frozen=True)
class Baseline:
    """A score without training, or the reason why there is none."""

    name: str  # ``the model as it is`` or ``the commonest answer``
    score: float | None = None  # as of a candidate
    low: float | None = None  # ends of its 95 % confidence interval
    high: float | None = None
    answer: str | None = None  # the commonest answer itself
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class ScoredBaseline:
    """A baseline with the scores that a decision compares methods to."""

    shown: Baseline
    row_scores: Scores | None  # of each row, higher for the better one; None if it has none


def scored_baselines(results: Results, metric: str) -> list[ScoredBaseline]:
    """Each score without training."""
    by = rows_metric(metric)
    names = {AS_IT_IS: "the model as it is", COMMONEST: "the commonest answer"}
    if by == ERROR:
        names[COMMONEST] = "the mean of the right numbers"
    scale = scale_of(metric, results.own_unit.name)
    not_scored = Untrained(reason="it is not scored yet")
    baselines = []
    for key, name in names.items():
        untrained = results.baselines.get(key, not_scored)
        baselines.append(_scored_baseline(results, name, untrained, by, scale))
    return baselines


def _scored_baseline(
    results: Results, name: str, untrained: Untrained, metric: str, scale: Scale
) -> ScoredBaseline:
    # Rows whose response lies beyond max_length have no loss, in no run.
    stored = [value for value in untrained.row_scores.get(metric, []) if value is not None]
    if not stored or len(stored) != len(results.rows):
        reason = untrained.reason or f"it has no {scale.title} on these rows"
        return ScoredBaseline(Baseline(name, reason=reason), None)
    row_scores = np.array([as_score(value, metric) for value in stored], float)
    low, high = _shown_interval(results, row_scores, metric, is_share=scale is PERCENT)
    score = as_score(float(row_scores.mean()), metric)
    answer = None if untrained.answer is None else answer_in_words(untrained.answer)
    return ScoredBaseline(Baseline(name, score, low, high, answer), row_scores)


def _shown_interval(
    results: Results, row_scores: Scores, metric: str, *, is_share: bool
) -> tuple[float | None, float | None]:
    """The ends of the 95 % confidence interval of the mean; None of a single row or group."""
    scores = row_scores[None]  # of one run
    if results.groups is not None:
        scores = by_group(scores, results.groups)
    if scores.size == 1:
        return None, None
    ends = mean_score(scores, share=is_share).interval()
    low, high = sorted(as_score(end, metric) for end in ends)
    return low, high
