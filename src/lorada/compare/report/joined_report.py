"""The report over the comparisons of several models: one decision, and a page that links to each.

A candidate is a model with a method at a size. Scores are joined by the held-out rows, which are
the same for all models.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, read_comparison
from lorada.compare.report.candidate_lines import GIB, CandidateLine, measure
from lorada.compare.report.score_scale import scale_of
from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import Common
from lorada.decision.statistics import by_group, difference
from lorada.support.files import json_text, write_atomic
from lorada.support.metric_names import as_score, lower_is_better, main_metric


@dataclass(frozen=True, eq=False)
class JoinedLine:
    """A candidate of one of the models."""

    model: str
    name: str  # of the candidate, with its model
    line: CandidateLine


@dataclass(frozen=True)
class Joined:
    """What the report over several models shows."""

    verdict: str
    sentences: tuple[str, ...]  # the best of each model against the one to take
    metric: str
    rows: int
    decision: Decision
    lines: tuple[JoinedLine, ...]  # by model, the best first
    folders: dict[str, str]  # model → its folder

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
        return {
            "verdict": self.verdict,
            "sentences": self.sentences,
            "metric": self.metric,
            "rows": self.rows,
            "best": self.decision.pick or "",
            "margin": self.decision.margin,
            "models": self.folders,
            "lines": lines,
            "decision": asdict(self.decision),
        }


def write_joined_report(
    folder: Path, folders: Mapping[str, str], margin: float | None = None
) -> tuple[Joined, list[Path]]:
    """Write ``report.html`` and ``report.json`` over the comparisons of several models.

    Args:
        folder: that of all of them.
        folders: model → the folder of its comparison in it.
        margin: what a cheaper candidate may cost, in the unit of the metric; None for that of the
            comparison.

    Raises:
        ValueError: if the models were scored on different rows, or none has a finished run.
    """
    results = {model: read_comparison(folder / name) for model, name in folders.items()}
    joined = join(results, dict(folders), margin)
    paths = [folder / "report.html", folder / "report.json"]
    write_atomic(paths[0], page(joined))
    write_atomic(paths[1], json_text(joined.plain()) + "\n")
    return joined, paths


def join(
    results: Mapping[str, Results], folders: dict[str, str], margin: float | None = None
) -> Joined:
    """Decide over the candidates of several models; see ``write_joined_report``."""
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
    for model, one in with_runs.items():
        for candidate in one.candidates:
            if candidate.runs:
                line = CandidateLine(candidate, measure(candidate, metric, one.own_unit.factor))
                lines.append(JoinedLine(model, f"{model} with {candidate.label}", line))
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
    models = [*results]
    lines.sort(key=lambda joined: (models.index(joined.model), -_mean(joined.line.result)))
    return Joined(
        verdict=decision.sentence,
        sentences=(*_across_models(lines, decision, first.groups), *_without_runs(results)),
        metric=metric,
        rows=len(first.rows),
        decision=decision,
        lines=tuple(lines),
        folders=folders,
    )


def _without_runs(results: Mapping[str, Results]) -> list[str]:
    """A sentence on each candidate that has no finished run, with its reason if it has one."""
    sentences = []
    for model, one in results.items():
        for candidate in one.candidates:
            if candidate.runs:
                continue
            reason = candidate.reason or "no run is finished"
            sentences.append(f"{model} with {candidate.label} has no score: {reason}.")
    return sentences


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


def page(joined: Joined) -> str:
    """The page: verdict, sentences, and a table for each model with a link to its own report."""
    decision, shown = joined.decision, joined.decision.score_format
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Comparison of models</title>",
        "<style>body{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .8rem;text-align:right}th:first-child{text-align:left}</style>",
        f"<h1>Comparison of {len(joined.folders)} models on {joined.rows} rows</h1>",
        f"<p>{escape(joined.verdict)}</p><ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in joined.sentences),
        "</ul>",
    ]
    for model, folder in joined.folders.items():
        parts.append(f"<h2><a href='{escape(folder)}/report.html'>{escape(model)}</a></h2>")
        parts.append(
            "<table><tr><th>candidate<th>score (95 %)<th>group<th>expected loss<th>parameters"
            "<th>s/step<th>GiB<th></tr>"
        )
        for one in joined.lines:
            if one.model != model:
                continue
            low, high = decision.intervals[one.name]
            loss = decision.expected_loss.get(one.name)
            measured = one.line.measured
            cells = [
                f"{shown.number(decision.scores[one.name])} ({shown.number(low)} to "
                f"{shown.number(high)})",
                decision.letters.get(one.name, "") or "–",
                "–" if loss is None else shown.short_loss(loss),
                f"{one.line.result.trainable or 0:,}",
                _cell(measured.seconds_per_step, ".3f"),
                _cell(measured.peak_memory_gib, ".2f"),
                decision.mark(one.name),
            ]
            row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            parts.append(f"<tr><th>{escape(one.line.label)}</th>{row}</tr>")
        parts.append("</table>")
    parts.append("<p>Candidates of all models that share a letter are not significantly different.")
    return "\n".join(parts) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
