"""Writes the report of a comparison: a page, and the same as Markdown, CSV, LaTeX and JSON."""

from pathlib import Path

from lorada.report.comparison.charts import Curve
from lorada.report.comparison.files import write_files
from lorada.report.comparison.page import comparison_page
from lorada.report.comparison.read import Results, read_comparison
from lorada.report.comparison.summarize import summarize
from lorada.support.files import write_atomic


def write_report(folder: Path, against: str | None = None, with_text: bool = False) -> list[Path]:
    """Write ``report.html``, ``.md``, ``.csv``, ``.tex`` and ``.json`` into a comparison's folder.

    The comparison need not be finished: the report then says what is missing. Each file is
    replaced at once, so that a reader never sees half of one.

    Args:
        folder: of the comparison.
        against: the method that others are tested against; by default the one that the comparison
            names, or its first.
        with_text: whether rows on which candidates disagree come with their text, if it is stored.

    Returns:
        The written files, the page first.

    Raises:
        ValueError: if the folder has no readable plan, or ``against`` is no method of it.
        ImportError: if a package of the extra ``compare`` is missing.
    """
    results = read_comparison(folder)
    summary = summarize(results, against, with_text)
    page = folder / "report.html"
    write_atomic(page, comparison_page(summary, loss_curves(results)))
    return [page, *write_files(summary, folder)]


def loss_curves(results: Results) -> dict[str, list[Curve]]:
    """The training loss of each run: label → a curve for each seed, (step, nats per token)."""
    return {
        candidate.label: [_curve(run.result.get("history")) for run in candidate.runs]
        for candidate in results.candidates
    }


def _curve(history: object) -> Curve:
    entries = history if isinstance(history, list) else []
    return [
        (entry["step"], float(entry["loss"]))
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("step"), int)
        and isinstance(entry.get("loss"), int | float)
    ]
