"""Writes the report over the comparisons of several models: a page, and the same as JSON."""

from collections.abc import Mapping
from pathlib import Path

from lorada.compare.report.joined_page import joined_page
from lorada.compare.report.joined_report import Joined, read_joined
from lorada.support.files import json_text, write_atomic


def write_joined_report(
    folder: Path, folders: Mapping[str, str], margin: float | None = None
) -> tuple[Joined, list[Path]]:
    """Write ``report.html`` and ``report.json`` over the comparisons of several models.

    Args:
        folder: that of all of them.
        folders: model → the folder of its comparison in it.
        margin: what a cheaper candidate may cost, in the unit of the metric; None for that of the
            comparison.

    Returns:
        What the report shows, and the written files, the page first.
    """
    joined = read_joined(folder, folders, margin)
    # Both texts before either file: a report that cannot be made leaves the old one whole.
    texts = {
        folder / "report.html": joined_page(joined),
        folder / "report.json": json_text(joined.plain()) + "\n",
    }
    for path, text in texts.items():
        write_atomic(path, text)
    return joined, list(texts)
