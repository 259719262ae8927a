"""Scores without training, as a report shows them beside the candidates."""

from dataclasses import dataclass, replace

import numpy as np

from lorada.compare.read_results import Results
from lorada.compare.report.score_scale import PERCENT, Scale, scale_of
from lorada.compare.stored_plan import AS_IT_IS, COMMONEST, Untrained
from lorada.decision.run_variances import Scores
from lorada.decision.statistics import by_group, mean_score
from lorada.support.in_words import answer_in_words
from lorada.support.metric_names import ERROR, as_score, rows_metric


@dataclass(frozen=True)
class Baseline:
    """A score without training, or the reason why there is none."""

    name: str  # such as ``the model as it is``, ``8 examples in the prompt``
    score: float | None = None  # as of a candidate
    low: float | None = None  # ends of its 95 % confidence interval
    high: float | None = None
    # Of the commonest answer: that answer, such as ``negative``, shown behind the name.
    answer: str | None = None
    note: str = ""  # how the model was asked, in words: ``by the chat template, 3 draws of …``
    prompt_tokens: float | None = None  # of a prompt on average; None if nothing was asked
    reason: str | None = None  # why there is no score; None where there is one


@dataclass(frozen=True, eq=False)
class ScoredBaseline:
    """A baseline with the scores that a decision compares methods to."""

    shown: Baseline
    # Draws of examples × rows, higher for the better one; None if it has none.
    row_scores: Scores | None
    # Whether it may be taken instead of a training: it is neither the model as it is nor the
    # commonest answer, which only say whether anything was learned.
    is_alternative: bool = True


def scored_baselines(results: Results, metric: str) -> list[ScoredBaseline]:
    """Each score without training: of the model as it is, the commonest answer, and all others.

    The first two are always listed, with the reason if they have no score.
    """
    by = rows_metric(metric)
    titles = {AS_IT_IS: "the model as it is", COMMONEST: "the commonest answer"}
    if by == ERROR:
        titles[COMMONEST] = "the mean of the right numbers"
    scale = scale_of(metric, results.own_unit.name)
    not_scored = Untrained(reason="it is not scored yet")
    untrained = {**dict.fromkeys(titles, not_scored), **results.baselines}
    baselines = []
    for key, baseline in untrained.items():
        title = baseline.title or titles.get(key, key)
        scored = _scored_baseline(results, title, baseline, by, scale)
        baselines.append(replace(scored, is_alternative=key not in titles))
    return baselines


def _scored_baseline(
    results: Results, title: str, untrained: Untrained, metric: str, scale: Scale
) -> ScoredBaseline:
    """A baseline with its mean and interval; with a reason where some of the rows have no score."""
    # Rows whose response lies beyond max_length have no loss, in no run.
    draws = []
    for values in untrained.tables_of(metric):
        draws.append([as_score(value, metric) for value in values if value is not None])
    has_all_rows = bool(draws) and all(draw and len(draw) == len(results.rows) for draw in draws)
    if not has_all_rows:
        reason = untrained.reason or f"it has no {scale.title} on these rows"
        return ScoredBaseline(Baseline(title, reason=reason), None)
    row_scores = np.array(draws, float)
    low, high = _shown_interval(results, row_scores, metric, is_share=scale is PERCENT)
    answer = None if untrained.answer is None else answer_in_words(untrained.answer)
    shown = Baseline(
        name=title,
        score=as_score(float(row_scores.mean()), metric),
        low=low,
        high=high,
        answer=answer,
        note=untrained.note,
        prompt_tokens=untrained.prompt_tokens,
    )
    return ScoredBaseline(shown, row_scores)


def _shown_interval(
    results: Results, row_scores: Scores, metric: str, *, is_share: bool
) -> tuple[float | None, float | None]:
    """The ends of the 95 % confidence interval of the mean; None of a single row or group."""
    scores = row_scores if results.groups is None else by_group(row_scores, results.groups)
    if scores.shape[1] == 1:
        return None, None
    ends = mean_score(scores, share=is_share).interval()
    low, high = sorted(as_score(end, metric) for end in ends)  # of a loss the sign turns them round
    if is_share:
        return max(low, 0.0), min(high, 100.0)
    return low, high
