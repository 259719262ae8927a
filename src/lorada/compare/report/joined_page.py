"""The page over the comparisons of several models: a picture of all, and a table for each model."""

from pathlib import Path

from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_tables import Table, TableRow
from lorada.compare.report.joined_report import Joined, JoinedLine, JoinedModel
from lorada.compare.report.score_picture import PicturedScores, ScoreLine, picture_of
from lorada.support.html import render_page
from lorada.support.tables import NOTHING

HEADER = [
    "candidate", "score (95 %)", "group", "expected loss", "parameters", "s/step", "GiB",
    "decision",
]  # fmt: skip


def joined_page(joined: Joined) -> str:
    """The page as HTML; like each report it works offline and has no script."""
    return render_page(
        Path(__file__).parent,
        f"Comparison of {len(joined.models)} models on {joined.task}",
        scripts=[],
        template="joined.html.j2",
        joined=joined,
        score_picture=picture_of(_pictured(joined)),
        tables=[_table(joined, model) for model in joined.models],
    )


def _pictured(joined: Joined) -> PicturedScores:
    """The candidates of all models, each with its model in its name."""
    decision = joined.decision
    lines = []
    for one in joined.lines:
        kind = "candidate"
        if one.name == decision.pick:
            kind = "pick"
        elif decision.differ(one.name, decision.highest):
            kind = "worse"
        lines.append(
            ScoreLine(
                one.name, decision.scores[one.name], decision.intervals[one.name],
                tuple(one.line.seed_scores), decision.letters.get(one.name, ""), kind,
            )
        )  # fmt: skip
    scale = joined.models[0].summary.scale
    return PicturedScores(lines, scale, decision.score_format, joined.rows)


def _table(joined: Joined, model: JoinedModel) -> Table:
    """The candidates of a model, those without a run too, then its scores without training."""
    rows = [_scored_row(joined, one) for one in joined.lines if one.model == model.name]
    for one in joined.unscored:
        if one.model == model.name:
            cells = [NOTHING] * (len(HEADER) - 1)
            rows.append(TableRow(one.line.label, "failed", [str(one.line.result.reason)], cells))
    for baseline in model.summary.baselines:
        rows.append(_baseline_row(joined, baseline))
    return Table(model.folder, model.name, model.summary.verdict, HEADER, rows)


def _scored_row(joined: Joined, one: JoinedLine) -> TableRow:
    decision, measured = joined.decision, one.line.measured
    shown = decision.score_format
    low, high = decision.intervals[one.name]
    score = decision.scores[one.name]
    loss = decision.expected_loss.get(one.name)
    trainable = one.line.result.trainable
    cells = [
        f"{shown.number(score)} ({shown.number(low)} to {shown.number(high)})",
        decision.letters.get(one.name) or NOTHING,
        NOTHING if loss is None else shown.short_loss(loss),
        NOTHING if trainable is None else f"{trainable:,}",
        _number(measured.seconds_per_step, ".3f"),
        _number(measured.peak_memory_gib, ".2f"),
        decision.mark(one.name),
    ]
    kind = "best" if one.name == decision.pick else "scored"
    # Of a candidate with some of its runs: what became of the others.
    notes = [one.line.result.reason] if one.line.result.reason else []
    return TableRow(one.line.label, kind, notes, cells)


def _baseline_row(joined: Joined, baseline: Baseline) -> TableRow:
    shown = joined.decision.score_format
    cells = [NOTHING] * (len(HEADER) - 1)
    notes = [baseline.reason] if baseline.reason else []
    if baseline.score is not None:
        cells[0] = shown.number(baseline.score)
        if baseline.low is not None and baseline.high is not None:
            cells[0] += f" ({shown.number(baseline.low)} to {shown.number(baseline.high)})"
    return TableRow(baseline.name, "baseline", notes, cells)


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
