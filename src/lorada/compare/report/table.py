"""The table of a comparison, as the page, the files and the terminal show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorada.compare.report.summary import Baseline, CandidateLine, Summary
from lorada.compare.report.units import number_form, title_of
from lorada.support.tables import NOTHING

SAME = 0.05  # points by which a metric may differ from the score and be shown as one number


@dataclass(frozen=True)
class Row:
    """A row of the table: a candidate or a baseline.

    Attributes:
        name: its heading.
        kind: ``best``, ``scored``, ``failed`` or ``baseline``.
        notes: what stands beside the name; why there is no score, for one.
        cells: one for each column but the first; what is in brackets explains the number before.
    """

    name: str
    kind: str
    notes: list[str]
    cells: list[str]


def table_header(summary: Summary) -> list[str]:
    """The headings; the main metric has a column only if it differs from the score."""
    references = {line.method for line in summary.lines if line.label in _references(summary)}
    against = ", ".join(sorted(references)) or "the reference"
    own = [summary.metric] if _has_metric(summary) else []
    return [
        "candidate", f"{title_of(summary.metric)} (95 % interval)", *own, "expected loss",
        "group", f"p (against {against})", "p (against the highest)",
        "trained parameters (of the model)", "adapter (MB)", "peak memory (GiB)",
        "time (s/step, in turns)", "merges", "forgetting (nats/token)", "learning rate",
    ]  # fmt: skip


def table_rows(summary: Summary) -> list[Row]:
    """The rows: candidates in the order of the summary, then baselines."""
    rows = [_candidate(summary, line) for line in summary.lines]
    empty = [NOTHING] * (len(table_header(summary)) - 2)
    for one in summary.baselines:
        notes = [f"answer: {one.answer}" if one.answer is not None else "", one.reason or ""]
        cells = [_score(summary, one), *empty]
        rows.append(Row(one.name, "baseline", [note for note in notes if note], cells))
    return rows


def table_texts(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows as texts; a name has why it has no score, or what it answers."""
    rows = [
        [_noted(row.name, "" if row.kind in ("best", "scored") else "; ".join(row.notes)),
         *row.cells]
        for row in table_rows(summary)
    ]  # fmt: skip
    return table_header(summary), rows


def _noted(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _references(summary: Summary) -> set[str]:
    """The labels that candidates are tested against: one for each budget, if there are several."""
    return {line.against for line in summary.lines if line.against}


def _has_metric(summary: Summary) -> bool:
    pairs = [(line.score, line.value) for line in summary.lines]
    return any(s is not None and v is not None and abs(s - v) > SAME for s, v in pairs)


def _candidate(summary: Summary, line: CandidateLine) -> Row:
    take = bool(summary.best) and line.label == summary.best
    notes = ["the one to take" if take else "", line.sizes, line.reason or ""]
    share = [] if line.percent is None else [f"{line.percent:.3f} %"]
    share += ["above the budget"] if line.above else []
    reference = line.against if len(_references(summary)) > 1 else ""
    cells = [
        _score(summary, line),
        *([_number(line.value, ".2f")] if _has_metric(summary) else []),
        _number(line.expected_loss, number_form(summary.metric)),
        line.letter or NOTHING,
        _probability(line.p_against, reference),
        _probability(line.p_best),
        _number(line.trainable, ",d", ", ".join(share)),
        _number(line.adapter_mb, ".2f"),
        _number(line.peak_memory_gib, ".2f"),
        _number(line.seconds_per_step, ".3f"),
        {None: NOTHING, True: "yes", False: "no"}[line.mergeable],
        _number(line.forgetting, "+.3f"),
        _noted(_rates(line.rates), f"map {_rates(line.map_rates)}" if line.map_rates else ""),
    ]
    kind = "failed" if line.score is None else "best" if take else "scored"
    return Row(line.label, kind, [note for note in notes if note], cells)


def _score(summary: Summary, one: CandidateLine | Baseline) -> str:
    form = number_form(summary.metric)
    known = one.low is not None and one.high is not None
    return _number(one.score, form, f"{one.low:{form}} to {one.high:{form}}" if known else "")


def _number(value: float | None, form: str, note: str = "") -> str:
    return NOTHING if value is None else _noted(format(value, form), note)


def _probability(value: float | None, note: str = "") -> str:
    if value is not None and value < 0.001:
        return _noted("< 0.001", note)
    return _number(value, ".3f", note)


def _rates(rates: Sequence[float]) -> str:
    """Learning rates from the lowest on: one, or the lowest and the highest."""
    return (
        " to ".join(dict.fromkeys(f"{rate:.2g}" for rate in (*rates[:1], *rates[-1:]))) or NOTHING
    )
