"""Writes the explorer's page: one HTML file that works offline and asks for nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorada.support.html import render_page

HERE = Path(__file__).parent
SCRIPTS = ("basics.js", "matrices.js", "detail.js", "heads.js", "charts.js", "page.js")


def explorer_page(data: Mapping[str, Any], *, asked: str | None = None) -> str:
    """The page as HTML; the same data always give the same page.

    Args:
        data: of the page, as ``data.py`` says.
        asked: what stands in a box for the reader's own sentence, which the page sends to the
            server that it comes from; None for a page without a server.

    Raises:
        ValueError: for a number that is not finite.
    """
    return render_page(
        HERE,
        data["title"],
        [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS],
        asks=asked is not None,
        asked=asked,
        runs=data["runs"],
        data={"sentences": data["sentences"], "runs": data["runs"]},
    )
