"""Writes the explorer's page: one HTML file that works offline and asks for nothing.

The matrices stand apart from the other numbers, each once: the page unpacks only what is looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorada.report.html import render_page

HERE = Path(__file__).parent
SCRIPTS = ("basics.js", "matrices.js", "detail.js", "heads.js", "charts.js", "page.js")
KINDS = ("softmax", "map", "without", "fused")


def explorer_page(data: Mapping[str, Any], *, asked: str | None = None) -> str:
    """The page as HTML; the same data always give the same page.

    Args:
        data: of the page, as ``data.py`` says.
        asked: what stands in a box for the reader's own sentence, which the page sends to the
            server that it comes from; None for a page without a server.

    Raises:
        ValueError: for a number that is not finite.
    """
    packed: dict[str, int] = {}  # base64 → its number on the page
    runs = [
        {**run, "shown": [[_shown(one, packed) for one in step] for step in run["shown"]]}
        for run in data["runs"]
    ]
    return render_page(
        HERE,
        data["title"],
        [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS],
        asks=asked is not None,
        asked=asked,
        runs=data["runs"],
        data={"sentences": [one["tokens"] for one in data["sentences"]], "runs": runs},
        packed=list(packed),
    )


def _shown(one: Mapping[str, Any], packed: dict[str, int]) -> dict[str, Any]:
    """A run on a sentence whose matrices name their data by its number; equal ones share it."""

    def numbered(matrices: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if matrices is None:
            return None
        index = packed.setdefault(matrices["data"], len(packed))
        return {"shape": matrices["shape"], "scale": matrices["scale"], "at": index}

    layers = [
        {**layer, **{kind: numbered(layer.get(kind)) for kind in KINDS}} for layer in one["layers"]
    ]
    return {**one, "layers": layers}
