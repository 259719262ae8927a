"""Writes the report of a comparison: a page, and the same as Markdown, CSV, LaTeX and JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from lorada.compare.report.pictures import pictures, scored
from lorada.compare.report.read import read_comparison
from lorada.compare.report.summarize import summarize
from lorada.compare.report.summary import CandidateLine, Summary
from lorada.compare.report.table import table_header, table_rows, table_texts
from lorada.compare.report.units import title_of, unit_of
from lorada.support.files import json_text, write_atomic
from lorada.support.html import render_page
from lorada.support.tables import csv_table, latex_table, markdown_table


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
        against: the method that others are tested against; by default the one that the comparison
            names, or its first.
        with_text: whether rows on which candidates disagree come with their text, if it is stored.
        metric: what methods are compared by; None for the comparison's own. Rows must have it.
        margin: that a cheaper candidate may cost, in the unit of the metric; None likewise.

    Returns:
        What the report shows, and the written files, the page first.

    Raises:
        ValueError: if the folder has no readable plan, ``against`` is no method of it, or its rows
            have no such metric.
        ImportError: if a package of the extra ``compare`` is missing.
    """
    summary = summarize(read_comparison(folder, metric), against, with_text, margin)
    texts = {
        "html": page(summary),
        "md": markdown(summary),
        "csv": comma_separated(summary),
        "tex": latex(summary),
        "json": json_text(asdict(summary)) + "\n",
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
        scored=scored(summary),
        pictures=pictures(summary),
        texts=any(one.text for one in summary.disagreements),
    )


def markdown(summary: Summary) -> str:
    """The whole summary as a Markdown page."""
    lines = [f"# Comparison of methods: {_plain(summary.model)}, {_plain(summary.task)}", ""]
    lines += [f"**{_plain(summary.verdict)}**", "", *_bullets(summary.sentences), ""]
    lines += _table(*table_texts(summary))
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
    lines += [f"[{what}]({quote(page)})" for what, page in summary.pages.items()]
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
    """The lines as CSV, with all fields of each; of seeds and rates, blanks between."""
    rows = [
        [" ".join(map(str, v)) if isinstance(v, tuple) else v for v in asdict(line).values()]
        for line in summary.lines
    ]
    return csv_table(list(CandidateLine.__dataclass_fields__), rows)


def latex(summary: Summary) -> str:
    """The table as a LaTeX ``tabular``, with the verdict as a comment above it."""
    return latex_table(*table_texts(summary), 1, [summary.verdict, *summary.sentences])


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    plain = [[_plain(cell) for cell in row] for row in rows]
    return [*markdown_table(header, plain, 1), ""]


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [f"- {_plain(sentence)}" for sentence in sentences]


def _plain(text: str) -> str:
    """The text in one line, with no tag for Markdown to read."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
