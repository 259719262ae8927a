"""Writes the report of a comparison: a page, and the same as JSON."""

from pathlib import Path

from lorada.compare.read_results import read_comparison
from lorada.compare.report.candidate_tables import tables
from lorada.compare.report.expected_loss_plot import cost_picture
from lorada.compare.report.first_screen import how_sure, where_to_look
from lorada.compare.report.how_measured import labels_by_settings, training_times, trials_by_label
from lorada.compare.report.retention_plot import retention_picture
from lorada.compare.report.score_picture import score_picture
from lorada.compare.report.summarize_comparison import Summary, summarize
from lorada.support.files import json_text, write_atomic
from lorada.support.html import render_page


def write_report(
    folder: Path,
    metric: str | None = None,
    margin: float | None = None,
    unit: str | None = None,
    with_text: bool | None = None,
) -> tuple[Summary, list[Path]]:
    """Write ``report.html`` and ``report.json`` into a comparison's folder.

    The comparison need not be finished: the report then says what is missing.

    Args:
        folder: of the comparison.
        metric: what methods are compared by; None for the comparison's own.
        margin: what a cheaper candidate may cost, in the unit of the metric; None likewise.
        unit: that of a user's function.
        with_text: True to have the texts of held-out rows in ``report.json`` too, False to have
            them in neither file; None as the comparison was asked to, which is on the page alone
            unless something else was said.

    Returns:
        What the report shows, and the written files, the page first.
    """
    summary = summarize(read_comparison(folder, metric, unit), margin, with_text)
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
    rows = summary.shown_rows
    return render_page(
        Path(__file__).parent,
        f"Comparison: {summary.model} on {summary.task}",
        scripts=[],
        summary=summary,
        rows=rows,
        sure=how_sure(summary),
        links=where_to_look(summary),
        score_picture=score_picture(summary),
        cost_picture=cost_picture(summary),
        retention_picture=retention_picture(summary),
        tables=tables(summary),
        scored=summary.scored,
        shows_texts=rows.have_texts,
        settings=labels_by_settings(summary),
        trials=trials_by_label(summary),
        times=training_times(summary),
    )
