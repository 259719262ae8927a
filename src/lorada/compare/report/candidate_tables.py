"""The tables of a report: what each candidate scores, what it costs, and how it learned.

A column is a title, a function from a candidate's line to its cell, and what the note below the
table says of it. One that is empty for every candidate is left out, with its words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.retention_summary import gain_cell, lost_cell
from lorada.compare.report.summarize_comparison import Summary
from lorada.support.in_words import duration
from lorada.support.tables import NOTHING

SAME = 0.05  # points by which a metric may differ from the score and be shown as one number
SMALL_P = 0.001  # a p-value below it is only said to be below it
MEGABYTE = 1e6  # bytes
SMALL_FILE = 1e5  # bytes; below, a file's size has one digit more


@dataclass(frozen=True)
class TableRow:
    """A row of a table of candidates.

    Attributes:
        name: of the candidate or the baseline.
        kind: ``best``, ``scored``, ``failed`` or ``baseline``.
        notes: what stands below the name.
        cells: one for each column but the first; what is in brackets explains the number before.
    """

    name: str
    kind: str
    notes: list[str]
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A table of candidates.

    Attributes:
        name: of the table, by which a link finds it.
        title: its heading.
        note: what its columns are.
        header: the titles of the columns, that of the names first.
        rows: the candidates in the order of the summary, then baselines.
    """

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[TableRow]


@dataclass(frozen=True)
class Column:
    """A column of a table but the first."""

    title: str
    cell_of: Callable[[CandidateLine], str]
    note: str = ""


def tables(summary: Summary) -> list[Table]:
    """The tables of a report; those without a number in any column are left out."""
    all_tables = [score_table(summary), cost_table(summary), learning_table(summary)]
    return [table for table in all_tables if len(table.header) > 1]


def score_table(summary: Summary) -> Table:
    """What each candidate scores, and what is decided about it; baselines stand below."""
    columns = [_score_column(summary), *_filled(_score_columns(summary), summary.lines)]
    rows = []
    for line in summary.lines:
        cells = [column.cell_of(line) for column in columns]
        rows.append(TableRow(line.label, _kind(summary, line), _notes(summary, line), cells))
    for baseline in summary.baselines:
        score = _score_cell(summary, baseline.score, baseline.low, baseline.high)
        cells = [score, *[NOTHING] * (len(columns) - 1)]
        rows.append(TableRow(baseline.name, "baseline", _baseline_notes(baseline), cells))
    return _table("candidates", "What each candidate scores", columns, rows)


def _score_column(summary: Summary) -> Column:
    return Column(
        f"{summary.scale.title} (95 % interval)",
        lambda line: _score_cell(summary, line.score, line.decided.low, line.decided.high),
        f"{summary.scale.title.capitalize()}: {summary.scale.unit}, with its 95 % interval, the "
        f"mean over {summary.rows} rows and the seeds.",
    )


def _score_columns(summary: Summary) -> list[Column]:
    """The columns beside the score; the main metric has one only if it is another number."""
    columns = []
    if any(line.value_differs(SAME) for line in summary.lines):
        columns.append(Column(summary.metric, lambda line: _number(line.measured.value, ".2f")))
    return [
        *columns,
        Column(
            "expected loss",
            lambda line: _loss_cell(summary, line),
            "Expected loss: how far the true mean is expected to be from the best one.",
        ),
        Column(
            "group",
            lambda line: line.decided.letter or NOTHING,
            "Candidates that share a letter (group) are not significantly different.",
        ),
        Column(
            "p (against the highest)",
            lambda line: _p_value(line.decided.p_best),
            "p: chance of such a difference between equal methods, corrected for the number of "
            "tests (Holm).",
        ),
        *_retention_columns(summary),
    ]


def _retention_columns(summary: Summary) -> list[Column]:
    """Gain and what is lost elsewhere, side by side."""
    retention = summary.retention
    return [
        Column(
            f"measured gain over {retention.over} (95 % interval)",
            lambda line: gain_cell(retention.of(line.label), summary.scale),
        ),
        Column(
            "lost elsewhere (nats/token, 95 % interval)",
            lambda line: lost_cell(retention.of(line.label)),
            "Lost elsewhere: growth of the loss on rows that the model should still do, against "
            "that of the model as it is.",
        ),
        Column(
            "group by what is lost",
            lambda line: retention.of(line.label).letter or NOTHING,
            "Candidates that share a letter of that group are not significantly different in it.",
        ),
    ]


COST_COLUMNS = (
    Column("trained parameters (of the model)", lambda line: _trained(line)),
    Column(
        "adapter's file (MB)",
        lambda line: _file_size(line.measured.adapter_bytes),
        "Adapter's file: what a run saves, with its task head if it has one.",
    ),
    Column("peak memory (GiB)", lambda line: _number(line.measured.peak_memory_gib, ".2f")),
    Column(
        "time (s/step)",
        lambda line: _number(line.measured.seconds_per_step, ".3f"),
        "Time: the median of a run's steps, of the fastest run. Runs that shared a device or a "
        "processor have slowed each other down, so times can be compared only roughly.",
    ),
    Column(
        "training of all runs",
        lambda line: _time(line.measured.run_seconds),
        "Training: one after another, without loading and scoring.",
    ),
    Column("training of the search", lambda line: _time(line.result.search_seconds)),
    Column(
        "merges",
        lambda line: _merges(line),
        "Merges: whether all of it can be merged into the model, so that answers take no longer.",
    ),
)


def cost_table(summary: Summary) -> Table:
    """What each candidate costs."""
    return _candidates_only(summary, "costs", "What each candidate costs", COST_COLUMNS)


LEARNING_COLUMNS = (
    Column(
        "searched",
        lambda line: line.searched,
        "Searched: of what the best on rows set aside was chosen; all other settings of a method "
        "are fixed and were not tuned (see How it was measured).",
    ),
    Column("learning rate", lambda line: _learning_rates(line)),
    Column(
        "loss in training",
        lambda line: _number(line.measured.train_loss, ".3f"),
        "Loss in training: of the last logged steps, the mean over runs.",
    ),
    Column("loss on held-out rows", lambda line: _number(line.measured.held_out_loss, ".3f")),
    Column(
        "held-out − training",
        lambda line: _loss_gap(line),
        "Where the loss on held-out rows is far above that in training, and farther than for other "
        "candidates, rows were learned by heart: fewer steps or a smaller size may score more.",
    ),
)


def learning_table(summary: Summary) -> Table:
    """How each candidate was tuned, and how its loss in training compares with held-out rows."""
    return _candidates_only(summary, "learning", "How each candidate learned", LEARNING_COLUMNS)


def _candidates_only(summary: Summary, name: str, title: str, columns: Sequence[Column]) -> Table:
    """A table of the candidates that something is known of; their sizes stand in the first one."""
    filled = _filled(columns, summary.lines)
    rows = []
    for line in summary.lines:
        cells = [column.cell_of(line) for column in filled]
        if any(cell != NOTHING for cell in cells):
            rows.append(TableRow(line.label, _kind(summary, line), [], cells))
    return _table(name, title, filled, rows)


def _table(name: str, title: str, columns: Sequence[Column], rows: list[TableRow]) -> Table:
    note = " ".join(column.note for column in columns if column.note)
    return Table(name, title, note, ["candidate", *(column.title for column in columns)], rows)


def _filled(columns: Sequence[Column], lines: Sequence[CandidateLine]) -> list[Column]:
    """The columns in which any candidate has something."""
    filled = []
    for column in columns:
        if any(column.cell_of(line) != NOTHING for line in lines):
            filled.append(column)
    return filled


def _is_best(summary: Summary, line: CandidateLine) -> bool:
    return bool(summary.best) and line.label == summary.best


def _kind(summary: Summary, line: CandidateLine) -> str:
    if line.score is None:
        return "failed"
    return "best" if _is_best(summary, line) else "scored"


def _notes(summary: Summary, line: CandidateLine) -> list[str]:
    """What stands below the name of a candidate."""
    notes = []
    if _is_best(summary, line):
        notes.append("the one to take")
    if line.result.sizes:
        notes.append(line.result.sizes)
    if line.result.reason:
        notes.append(line.result.reason)
    return notes


def _baseline_notes(baseline: Baseline) -> list[str]:
    """What stands behind the name of a baseline: its answer, how it was asked, or why no score."""
    notes = []
    if baseline.answer is not None:
        notes.append(f"answer: {baseline.answer}")
    if baseline.note:
        notes.append(baseline.note)
    if baseline.prompt_tokens is not None:
        notes.append(f"{baseline.prompt_tokens:.0f} tokens in a prompt")
    if baseline.reason:
        notes.append(baseline.reason)
    return notes


def _with_note(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _score_cell(
    summary: Summary, score: float | None, low: float | None, high: float | None
) -> str:
    """A score with the ends of its interval, as far as they are known."""
    if score is None:
        return NOTHING
    number = summary.score_format.number
    if low is None or high is None:
        return number(score)
    return f"{number(score)} ({number(low)} to {number(high)})"


def _loss_cell(summary: Summary, line: CandidateLine) -> str:
    expected_loss = line.decided.expected_loss
    return NOTHING if expected_loss is None else summary.score_format.short_loss(expected_loss)


def _trained(line: CandidateLine) -> str:
    """The trained parameters, with their share of the model."""
    candidate = line.result.candidate
    if candidate.trainable is None:
        return NOTHING
    notes = []
    if candidate.percent is not None:
        notes.append(f"{candidate.percent:.3f} %")
    if any(candidate.budgets.values()):
        notes.append("above the budget")
    return _with_note(f"{candidate.trainable:,d}", ", ".join(notes))


def _file_size(size: int | None) -> str:
    if size is None:
        return NOTHING
    return f"{size / MEGABYTE:.3f}" if size < SMALL_FILE else f"{size / MEGABYTE:,.2f}"


def _time(seconds: float | None) -> str:
    return NOTHING if seconds is None else duration(seconds)


def _merges(line: CandidateLine) -> str:
    mergeable = line.result.candidate.mergeable
    if mergeable is None:
        return NOTHING
    return "yes" if mergeable else "no"


def _learning_rates(line: CandidateLine) -> str:
    """The rates of a candidate's runs, with those of its maps where they differ."""
    map_rates = line.measured.map_rates
    return _with_note(_ends(line.measured.rates), f"map {_ends(map_rates)}" if map_rates else "")


def _loss_gap(line: CandidateLine) -> str:
    """How far the loss on held-out rows is above that in training."""
    measured = line.measured
    if measured.train_loss is None or measured.held_out_loss is None:
        return NOTHING
    return f"{measured.held_out_loss - measured.train_loss:+.3f}"


def _ends(rates: Sequence[float]) -> str:
    """Learning rates from the lowest on: one, or the lowest and the highest."""
    if not rates:
        return NOTHING
    lowest, highest = f"{rates[0]:.2g}", f"{rates[-1]:.2g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _p_value(p: float | None) -> str:
    if p is not None and p < SMALL_P:
        return f"< {SMALL_P}"
    return _number(p, ".3f")
