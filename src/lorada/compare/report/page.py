"""Writes the report of a comparison: a page, and the same as Markdown, CSV, LaTeX and JSON."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lorada.compare.report.pictures import pictures
from lorada.compare.report.read import CandidateResult, read_comparison
from lorada.compare.report.summary import Baseline, Summary, summarize
from lorada.compare.report.words import number_form, title_of, unit_of
from lorada.support.files import json_text, write_atomic
from lorada.support.html import render_page
from lorada.support.tables import NOTHING, csv_table, latex_table, markdown_table

SAME = 0.05  # points by which a metric may differ from the score and be shown as one number
Row = tuple[str, str, list[str], list[str]]  # name, kind, what stands beside the name, and cells


def write_report(
    folder: Path,
    against: str | None = None,
    with_text: bool = False,
    metric: str | None = None,
    margin: float | None = None,
) -> tuple[Summary, list[Path]]:
    """Write ``report.html``, ``.md``, ``.csv``, ``.tex`` and ``.json`` into a comparison's folder.

    The comparison need not be finished: the report then says what is missing. Each file is
    replaced at once, so that a reader never sees half of one.

    Args:
        folder: of the comparison.
        against: the method that others are tested against; if not given the one that the comparison
            names, or its first.
        with_text: whether rows on which candidates disagree come with their text, if it is stored.
        metric: what methods are compared by; None for the comparison's own. Rows must have it.
        margin: that a cheaper candidate may cost, in the unit of the metric; None likewise.

    Returns:
        What the report shows, and the written files, the page first.
    """
    summary = summarize(read_comparison(folder, metric), against, with_text, margin)
    texts = {
        "html": page(summary),
        "md": markdown(summary),
        "csv": comma_separated(summary),
        "tex": latex(summary),
        "json": json_text(summary.plain()) + "\n",
    }
    paths = {folder / f"report.{kind}": text for kind, text in texts.items()}
    for path, text in paths.items():
        write_atomic(path, text)
    return summary, list(paths)


def page(summary: Summary) -> str:
    """The page as HTML: one file that works offline and asks for nothing, without a script."""
    return render_page(
        Path(__file__).parent,
        f"Comparison: {summary.model} on {summary.task}",
        [],
        summary=summary,
        header=table_header(summary),
        rows=table_rows(summary),
        what=title_of(summary.metric),
        unit=unit_of(summary.metric),
        scored=summary.scored,
        pictures=pictures(summary),
        texts=any(one.text for one in summary.disagreements),
    )


def markdown(summary: Summary) -> str:
    """The whole summary as a Markdown page."""
    lines = [f"# Comparison of methods: {_plain(summary.model)}, {_plain(summary.task)}", ""]
    lines += [f"**{_plain(summary.verdict)}**", "", *_bullets(summary.sentences), ""]
    lines += _table(*_table_texts(summary))
    what = title_of(summary.metric).capitalize()
    lines += [
        f"{what}: {unit_of(summary.metric)}, with its 95 % interval. Candidates that share a "
        "letter (group) are not significantly different. p: chance of such a difference between "
        "equal methods, corrected for the number of tests (Holm). Expected loss: how far the true "
        "mean is expected to be from the best one. Forgetting: growth of the loss on a neutral "
        "text. Time: measured at the end for all in turns, because the times of the "
        "runs depend on what ran beside them.",
        "",
    ]
    commands = [f"{command}  # {what}" for what, command in summary.commands.items()]
    if commands:
        lines += ["## Commands", "", "```bash", *commands, "```", ""]
    if summary.disagreements:
        rows = [
            [one.rows, str(one.row), ", ".join(one.right), ", ".join(one.wrong)]
            for one in summary.disagreements
        ]
        lines += ["## Rows on which candidates disagree", ""]
        lines += _table(["rows", "row", "right in most seeds", "wrong"], rows)
    facts = [
        f"seeds: {', '.join(map(str, summary.seeds))}",
        *(f"machine: {machine}" for machine in summary.hardware),
        ", ".join(f"{package} {version}" for package, version in summary.versions.items()),
    ]
    lines += ["## Runs", "", *_bullets(filter(None, facts)), *_bullets(summary.notes), ""]
    return "\n".join(lines)


def comma_separated(summary: Summary) -> str:
    """The candidates as CSV, with all fields of each; of seeds and rates, blanks between."""
    plain = [line.plain() for line in summary.lines]
    rows = [
        [" ".join(map(str, v)) if isinstance(v, list | tuple) else v for v in one.values()]
        for one in plain
    ]
    return csv_table(list(plain[0]) if plain else [], rows)


def latex(summary: Summary) -> str:
    """The table as a LaTeX ``tabular``, with the verdict as a comment above it."""
    return latex_table(*_table_texts(summary), 1, [summary.verdict, *summary.sentences])


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
    """The rows: candidates in the order of the summary, then baselines.

    A kind is ``best``, ``scored``, ``failed`` or ``baseline``. There is a cell for each column but
    the first; what is in brackets explains the number before.
    """
    rows = [_candidate(summary, line) for line in summary.lines]
    empty = [NOTHING] * (len(table_header(summary)) - 2)
    for one in summary.baselines:
        notes = [f"answer: {one.answer}" if one.answer is not None else "", one.reason or ""]
        cells = [_score(summary, one), *empty]
        rows.append((one.name, "baseline", [note for note in notes if note], cells))
    return rows


def _table_texts(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows as texts; a name has why it has no score, or what it answers."""
    rows = [
        [_noted(name, "" if kind in ("best", "scored") else "; ".join(notes)), *cells]
        for name, kind, notes, cells in table_rows(summary)
    ]
    return table_header(summary), rows


def _noted(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _references(summary: Summary) -> set[str]:
    """The labels that candidates are tested against: one for each budget, if there are several."""
    return {line.against for line in summary.lines if line.against}


def _has_metric(summary: Summary) -> bool:
    pairs = [(line.score, line.value) for line in summary.lines]
    return any(s is not None and v is not None and abs(s - v) > SAME for s, v in pairs)


def _candidate(summary: Summary, line: CandidateResult) -> Row:
    take, plan = bool(summary.best) and line.label == summary.best, line.candidate
    notes = ["the one to take" if take else "", line.sizes, line.reason or ""]
    share = [] if plan.percent is None else [f"{plan.percent:.3f} %"]
    share += ["above the budget"] if any(plan.budgets.values()) else []
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
        {None: NOTHING, True: "yes", False: "no"}[plan.mergeable],
        _number(line.forgetting, "+.3f"),
        _noted(_rates(line.rates), f"map {_rates(line.map_rates)}" if line.map_rates else ""),
    ]
    kind = "failed" if line.score is None else "best" if take else "scored"
    return line.label, kind, [note for note in notes if note], cells


def _score(summary: Summary, one: CandidateResult | Baseline) -> str:
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


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    plain = [[_plain(cell) for cell in row] for row in rows]
    return [*markdown_table(header, plain, 1), ""]


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [f"- {_plain(sentence)}" for sentence in sentences]


def _plain(text: str) -> str:
    """The text in one line, with no tag for Markdown to read."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
