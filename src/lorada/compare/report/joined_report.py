"""The decision over the comparisons of several models; ``joined_page.py`` shows it.

A candidate is a model with a method at a size. Scores are joined by the held-out rows, which are
the same for all models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, read_comparison
from lorada.compare.report.candidate_lines import GIB, CandidateLine, measure
from lorada.compare.report.score_scale import scale_of
from lorada.compare.report.summarize_comparison import Summary, summarize
from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import Common
from lorada.decision.statistics import by_group, difference
from lorada.support.metric_names import as_score, lower_is_better, main_metric


@dataclass(frozen=True, eq=False)
class JoinedLine:
    """A candidate of one of the models."""

    model: str
    name: str  # of the candidate, with the folder of its model, which is short
    line: CandidateLine


@dataclass(frozen=True)
class JoinedModel:
    """One of the models, with what its own report shows."""

    name: str
    folder: str  # of its comparison, in that of all
    summary: Summary


@dataclass(frozen=True)
class Joined:
    """What the report over several models shows."""

    verdict: str
    sentences: tuple[str, ...]  # the best of each model against the one to take
    metric: str
    rows: int
    decision: Decision
    lines: tuple[JoinedLine, ...]  # by model, the best first
    unscored: tuple[JoinedLine, ...]  # candidates without a run, each with its reason
    models: tuple[JoinedModel, ...]

    @property
    def task(self) -> str:
        """The task or the file of the held-out rows."""
        return self.models[0].summary.task

    def plain(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        lines = []
        for joined in self.lines:
            name = joined.name
            interval = self.decision.intervals.get(name, (None, None))
            own = joined.line.plain()
            decided = {
                "low": interval[0],
                "high": interval[1],
                "expected_loss": self.decision.expected_loss.get(name),
                "mark": self.decision.mark(name),
                "letter": self.decision.letters.get(name, ""),
                "p_best": self.decision.p_highest.get(name),
            }
            lines.append({**own, "model": joined.model, "name": name, **decided})
        for joined in self.unscored:
            lines.append({**joined.line.plain(), "model": joined.model, "name": joined.name})
        models = []
        for model in self.models:
            summary = model.summary
            gain = summary.decision.gain if summary.decision else None
            models.append(
                {
                    "name": model.name,
                    "folder": model.folder,
                    "verdict": summary.verdict,
                    "gain": asdict(gain) if gain else None,
                    "baselines": [asdict(baseline) for baseline in summary.baselines],
                }
            )
        return {
            "verdict": self.verdict,
            "sentences": self.sentences,
            "metric": self.metric,
            "rows": self.rows,
            "best": self.decision.pick or "",
            "margin": self.decision.margin,
            "models": models,
            "lines": lines,
            "decision": asdict(self.decision),
        }


def read_joined(folder: Path, folders: Mapping[str, str], margin: float | None = None) -> Joined:
    """Read the comparisons of several models, and decide over them; see ``join``.

    Args:
        folder: that of all of them.
        folders: model → the folder of its comparison in it.
        margin: what a cheaper candidate may cost, in the unit of the metric; None for that of the
            comparison.
    """
    results = {model: read_comparison(folder / name) for model, name in folders.items()}
    return join(results, folders, margin)


def join(
    results: Mapping[str, Results], folders: Mapping[str, str], margin: float | None = None
) -> Joined:
    """Decide over the candidates of several models.

    Raises:
        ValueError: if the models were scored on different rows, or none has a finished run.
    """
    with_runs = {model: one for model, one in results.items() if one.rows}
    if not with_runs:
        raise ValueError("no run is finished: go on with `lorada compare FOLDER --resume`")
    first = next(iter(with_runs.values()))
    for model, one in with_runs.items():
        if one.rows != first.rows:
            raise ValueError(
                f"{model} was scored on other rows: go on with `lorada compare --resume`"
            )
    metric = _metric_of(first)
    lines: list[JoinedLine] = []
    unscored: list[JoinedLine] = []
    for model, one in results.items():
        for candidate in one.candidates:
            line = CandidateLine(candidate, measure(candidate, metric, one.own_unit.factor))
            joined_line = JoinedLine(model, f"{folders[model]} with {candidate.label}", line)
            if candidate.runs:
                lines.append(joined_line)
            else:
                unscored.append(joined_line)
    sign = as_score(1.0, metric)
    decision = decide(
        {joined.name: sign * joined.line.result.scores for joined in lines},
        {joined.name: _costs(joined.line) for joined in lines},
        first.asked.margin if margin is None else margin,
        lower_is_better=lower_is_better(metric),
        groups=first.groups,
        seeds={joined.name: [run.seed for run in joined.line.result.runs] for joined in lines},
        unit=scale_of(metric, first.own_unit.name).unit_to_decide,
    )
    order = [*results]
    models = []
    for model, one in results.items():
        models.append(JoinedModel(model, folders[model], summarize(one, margin)))
    lines.sort(key=lambda joined: (order.index(joined.model), -_mean(joined.line.result)))
    return Joined(
        verdict=_verdict(lines, models, decision),
        sentences=tuple(_across_models(lines, decision, first.groups)),
        metric=metric,
        rows=len(first.rows),
        decision=decision,
        lines=tuple(lines),
        unscored=tuple(unscored),
        models=tuple(models),
    )


def _verdict(lines: Sequence[JoinedLine], models: Sequence[JoinedModel], decision: Decision) -> str:
    """Which candidate to take; before that, where its gain is not shown, not to tune yet.

    A model's own report has the gain of the candidate that it would take. Where this is another one
    than that to take over all models, nothing is said of its gain.
    """
    pick = next((joined for joined in lines if joined.name == decision.pick), None)
    if pick is None:
        return decision.sentence
    summary = next(model.summary for model in models if model.name == pick.model)
    gain = summary.decision.gain if summary.decision else None
    if gain is None or gain.is_shown or gain.method != pick.line.label:
        return decision.sentence
    sentence = decision.sentence[0].lower() + decision.sentence[1:]
    return (
        f"Do not tune yet: {pick.name} is not shown to be better than {gain.over}. If you tune all "
        f"the same, {sentence}"
    )


def _metric_of(results: Results) -> str:
    """What the comparison was made by, or the main metric of its runs."""
    if results.metric:
        return results.metric
    for candidate in results.candidates:
        for metrics in candidate.metrics:
            return main_metric(metrics.scores)
    return ""


def _mean(candidate: CandidateResult) -> float:
    return float(candidate.scores.mean())


def _costs(line: CandidateLine) -> dict[str, float]:
    """What differs between models too: time of a step and memory of a training.

    Trained parameters are left out: few of a large model are no saving over many of a small one.
    """
    costs: dict[str, float] = {}
    if line.measured.seconds_per_step is not None:
        costs["seconds"] = line.measured.seconds_per_step
    if line.measured.peak_memory_gib is not None:
        costs["bytes"] = line.measured.peak_memory_gib * GIB
    return costs


def _across_models(lines: list[JoinedLine], decision: Decision, groups: Any) -> list[str]:
    """How the best candidate stands to the best of every other model, with a 95 % interval."""
    best_name = decision.pick or decision.highest
    best = next((joined for joined in lines if joined.name == best_name), None)
    if best is None:
        return []
    tables = [joined.line.result.scores for joined in lines]
    if groups is not None:
        tables = [by_group(table, groups) for table in tables]
    table_of = {joined.name: table for joined, table in zip(lines, tables, strict=True)}
    several_runs = [table for table in tables if len(table) > 1]
    common = Common.of(several_runs) if several_runs else None
    sentences = []
    seen = {best.model}
    for other in lines:  # the best of each model comes first
        if other.model in seen:
            continue
        seen.add(other.model)
        estimate = difference(table_of[best.name], table_of[other.name], common)
        low, high = estimate.interval()
        gap = float(np.mean(table_of[best.name]) - np.mean(table_of[other.name]))
        if gap < 0:
            gap, low, high, side = -gap, -high, -low, "worse than"
        else:
            side = "better than"
        shown = decision.score_format
        size = shown.with_unit(shown.gain(gap))
        sentence = (
            f"{best.name}: {size} {side} {other.name} ({shown.gain(low)} to {shown.gain(high)})"
        )
        sentences.append(f"{sentence}{_slower(best.line, other.line)}.")
    return sentences


def _slower(line: CandidateLine, other: CandidateLine) -> str:
    """How many times as long a step of one takes as of the other; empty if that is not known."""
    mine, others = line.measured.seconds_per_step, other.measured.seconds_per_step
    if not mine or not others:
        return ""
    if mine >= others:
        return f", {mine / others:.2g} times as long a step of training"
    return f", {others / mine:.2g} times as fast a step of training"
