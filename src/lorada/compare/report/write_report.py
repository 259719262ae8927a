"""Writes the report of a comparison: a page, and the same as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorada.compare.read_results import read_comparison
from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.expected_loss_plot import cost_picture
from lorada.compare.report.summarize_comparison import Summary, summarize
from lorada.compare.stored_plan import Trial
from lorada.support.files import json_text, write_atomic
from lorada.support.html import render_page
from lorada.support.tables import NOTHING

SAME = 0.05  # points by which a metric may differ from the score and be shown as one number
SMALL_P = 0.001  # a p-value below it is only said to be below it


@dataclass(frozen=True)
class TableRow:
    """A row of the table of candidates.

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


def write_report(
    folder: Path, metric: str | None = None, margin: float | None = None, unit: str | None = None
) -> tuple[Summary, list[Path]]:
    """Write ``report.html`` and ``report.json`` into a comparison's folder.

    The comparison need not be finished: the report then says what is missing. ``metric`` is what
    methods are compared by, ``margin`` what a cheaper candidate may cost in its unit; None for the
    comparison's own. ``unit`` is that of a user's function. Returns what the report shows, and the
    written files, the page first.
    """
    summary = summarize(read_comparison(folder, metric, unit), margin)
    # Both texts before either file: a report that cannot be made leaves the old one whole.
    texts = {
        folder / "report.html": page(summary),
        folder / "report.json": json_text(summary.plain()) + "\n",
    }
    for path, text in texts.items():
        write_atomic(path, text)
    return summary, list(texts)


def page(summary: Summary) -> str:
    """The page as HTML: one file that works offline and asks for nothing, without a script."""
    header, table_rows = table(summary)
    trials_by_label = {}
    for line in summary.lines:
        trials = _trials_in_words(line)
        if trials:
            trials_by_label[line.label] = trials
    return render_page(
        Path(__file__).parent,
        f"Comparison: {summary.model} on {summary.task}",
        scripts=[],
        summary=summary,
        header=header,
        table_rows=table_rows,
        note=note(summary),
        scored=summary.scored,
        picture=cost_picture(summary),
        shows_texts=any(row.text for row in summary.disagreements),
        shows_wrong_texts=any(row.text for row in summary.wrong_rows),
        trials=trials_by_label,
    )


def _trials_in_words(line: CandidateLine) -> list[str]:
    """The rates that a candidate's search tried, from the lowest on, each with its loss."""
    search, settings = line.result.search, line.result.candidate.choices
    if search is None:
        return []

    def place(trial: Trial) -> tuple[int, float, float]:
        return trial.choice, trial.rate, trial.map_factor

    texts = []
    for trial in sorted(search.trials, key=place):
        setting = f"{settings[trial.choice].method}, " if settings else ""
        map_rate = "" if trial.map_rate is None else f" (map {trial.map_rate:.2g})"
        outcome = "failed or diverged" if trial.loss is None else f"{trial.loss:.4f}"
        texts.append(f"{setting}{trial.rate:.2g}{map_rate}: {outcome}")
    return texts


def note(summary: Summary) -> str:
    """What the columns of the table are."""
    return (
        f"{summary.scale.title.capitalize()}: {summary.scale.unit}, with its 95 % interval, the "
        f"mean over {summary.rows} rows and the seeds. Candidates that share a letter (group) are "
        "not significantly different. p: chance of such a difference between equal methods, "
        "corrected for the number of tests (Holm). Expected loss: how far the true mean is "
        "expected to be from the best one. Forgetting: growth of the model's loss on a neutral "
        "text. Time: the median of a run's steps, of the fastest run. Runs that shared a device or "
        "a processor have slowed each other down, so their times can be compared only roughly."
    )


def table(summary: Summary) -> tuple[list[str], list[TableRow]]:
    """The headings, and the rows: candidates in the order of the summary, then baselines."""
    columns = _columns(summary)
    table_rows = []
    for line in summary.lines:
        cells = [column.cell_of(line) for column in columns]
        table_rows.append(TableRow(line.label, _kind(summary, line), _notes(summary, line), cells))
    for baseline in summary.baselines:
        score = _score_cell(summary, baseline.score, baseline.low, baseline.high)
        cells = [score, *[NOTHING] * (len(columns) - 1)]
        table_rows.append(TableRow(baseline.name, "baseline", _baseline_notes(baseline), cells))
    return ["candidate", *(column.title for column in columns)], table_rows


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


@dataclass(frozen=True)
class _Column:
    """A column of the table but the first."""

    title: str
    cell_of: Callable[[CandidateLine], str]


def _columns(summary: Summary) -> list[_Column]:
    """The columns of the table but the first.

    The main metric has a column only if it differs from the score.
    """
    columns = [
        _Column(
            f"{summary.scale.title} (95 % interval)",
            lambda line: _score_cell(summary, line.score, line.decided.low, line.decided.high),
        )
    ]
    if any(line.value_differs(SAME) for line in summary.lines):
        columns.append(_Column(summary.metric, lambda line: _number(line.measured.value, ".2f")))
    columns += [
        _Column("expected loss", lambda line: _loss_cell(summary, line)),
        _Column("group", lambda line: line.decided.letter or NOTHING),
        _Column("p (against the highest)", lambda line: _p_value(line.decided.p_best)),
        _Column("trained parameters (of the model)", _trained),
        _Column("peak memory (GiB)", lambda line: _number(line.measured.peak_memory_gib, ".2f")),
        _Column("time (s/step)", lambda line: _number(line.measured.seconds_per_step, ".3f")),
        _Column("merges", _merges),
        _Column("forgetting (nats/token)", lambda line: _number(line.measured.forgetting, "+.3f")),
        _Column("learning rate", _learning_rates),
    ]
    return columns


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


def _merges(line: CandidateLine) -> str:
    mergeable = line.result.candidate.mergeable
    if mergeable is None:
        return NOTHING
    return "yes" if mergeable else "no"


def _learning_rates(line: CandidateLine) -> str:
    """The rates of a candidate's runs, with those of its maps where they differ."""
    map_rates = line.measured.map_rates
    return _with_note(_ends(line.measured.rates), f"map {_ends(map_rates)}" if map_rates else "")


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
