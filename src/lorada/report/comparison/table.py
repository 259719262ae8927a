"""The table of a comparison, as the page, the files and the terminal show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorada.report.comparison.summary import Baseline, CandidateLine, Summary
from lorada.report.comparison.verdict import LOSSES
from lorada.report.tables import NOTHING

SCORED = ("best", "scored")  # kinds of rows of candidates with a score
SAME = 0.05  # points by which a metric may differ from the score and be shown as one number


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: its heading.
        unit: smaller text below the heading.
        first: the order that the first click sorts by, ``ascending`` or ``descending``.
    """

    title: str
    unit: str = ""
    first: str = "ascending"


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: what is shown.
        value: what its column is sorted by on the page; a cell with an empty value comes last.
        note: on the page smaller text below, elsewhere in brackets.
    """

    text: str = NOTHING
    value: float | str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table: a candidate or a baseline.

    Attributes:
        name: its heading.
        kind: ``best``, ``scored``, ``failed`` or ``baseline``.
        notes: smaller texts below the name.
        cells: one for each column but the first.
    """

    name: str
    kind: str
    notes: list[str]
    cells: list[Cell]


def table_columns(summary: Summary) -> list[Column]:
    """The columns; the main metric has one only if it differs from the score."""
    references = {line.method for line in summary.lines if line.label in _references(summary)}
    metric = [Column(summary.metric, first="descending")] if _has_metric(summary) else []
    return [
        Column("candidate"),
        Column("score", "95 % interval", "descending"),
        *metric,
        Column("group"),
        Column("p", f"against {', '.join(sorted(references)) or 'the reference'}"),
        Column("p", "against the highest"),
        Column("trained parameters", "of the model"),
        Column("adapter", "MB"),
        Column("peak memory", "GiB"),
        Column("time", "s/step, in turns"),
        Column("merges"),
        Column("forgetting", "nats/token"),
        Column("learning rate"),
    ]


def table_rows(summary: Summary) -> list[Row]:
    """The rows: candidates in the order of the summary, then baselines."""
    rows = [_candidate(summary, line) for line in summary.lines]
    empty = [Cell()] * (len(table_columns(summary)) - 2)
    for one in summary.baselines:
        notes = [f"answer: {one.answer}" if one.answer is not None else "", one.reason or ""]
        cells = [_score(summary, one), *empty]
        rows.append(Row(one.name, "baseline", [note for note in notes if note], cells))
    return rows


def table_texts(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows as texts; a name has why it has no score, or what it answers."""
    header = [_joined(column.title, column.unit) for column in table_columns(summary)]
    rows = [
        [
            row.name if row.kind in SCORED else _joined(row.name, "; ".join(row.notes)),
            *(_joined(cell.text, cell.note) for cell in row.cells),
        ]
        for row in table_rows(summary)
    ]
    return header, rows


def _joined(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _references(summary: Summary) -> set[str]:
    """The labels that candidates are tested against: one for each budget, if there are several."""
    return {line.against for line in summary.lines if line.against}


def _has_metric(summary: Summary) -> bool:
    pairs = [(line.score, line.value) for line in summary.lines]
    return any(s is not None and v is not None and abs(s - v) > SAME for s, v in pairs)


def _candidate(summary: Summary, line: CandidateLine) -> Row:
    take = bool(summary.best) and line.label == summary.best
    notes = [
        "the one to take" if take else "",
        line.sizes,
        line.reason or "",
    ]
    share = [] if line.percent is None else [f"{line.percent:.3f} %"]
    share += ["above the budget"] if line.above else []
    rate = Cell(_rates(line.rates), line.rates[0]) if line.rates else Cell()
    reference = line.against if len(_references(summary)) > 1 else ""
    merges = {None: Cell(), True: Cell("yes", 1), False: Cell("no", 0)}
    cells = [
        _score(summary, line),
        *([_number(line.value, ".2f")] if _has_metric(summary) else []),
        Cell(line.letter, line.letter) if line.letter else Cell(),
        _probability(line.p_against, reference),
        _probability(line.p_best),
        _number(line.trainable, ",d", ", ".join(share)),
        _number(line.adapter_mb, ".2f"),
        _number(line.peak_memory_gib, ".2f"),
        _number(line.seconds_per_step, ".3f"),
        merges[line.mergeable],
        _number(line.forgetting, "+.3f"),
        rate,
    ]
    kind = "failed" if line.score is None else "best" if take else "scored"
    return Row(line.label, kind, [note for note in notes if note], cells)


def _score(summary: Summary, one: CandidateLine | Baseline) -> Cell:
    form = ".3f" if summary.metric == LOSSES else ".1f"
    if one.low is None or one.high is None:
        return _number(one.score, form)
    return _number(one.score, form, f"{one.low:{form}} to {one.high:{form}}")


def _number(value: float | None, form: str, note: str = "") -> Cell:
    return Cell() if value is None else Cell(format(value, form), value, note)


def _probability(value: float | None, note: str = "") -> Cell:
    if value is not None and value < 0.001:
        return Cell("< 0.001", value, note)
    return _number(value, ".3f", note)


def _rates(rates: Sequence[float]) -> str:
    """Learning rates from the lowest on: one, or the lowest and the highest."""
    return " to ".join(dict.fromkeys(f"{rate:.2g}" for rate in (rates[0], rates[-1])))
