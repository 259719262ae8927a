"""Writes the explorer's page: one HTML file that works offline and asks for nothing.

The matrices stand apart from the other numbers, each once: the page unpacks only what is looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorada.report.explorer.data import ExplorerPage, Layer, Matrices
from lorada.report.html import render_page

HERE = Path(__file__).parent
SCRIPTS = ("basics.js", "matrices.js", "detail.js", "heads.js", "charts.js", "page.js")
KINDS = ("softmax", "map", "without", "fused")


def explorer_page(data: Mapping[str, Any] | ExplorerPage, *, asked: str | None = None) -> str:
    """The page as HTML; the same data always give the same page.

    Args:
        data: the fields of ``ExplorerPage``, of plain Python, or a ``ExplorerPage``.
        asked: what stands in a box for the reader's own sentence, which the page sends to the
            server that it comes from; None for a page without a server.

    Raises:
        ValueError: if the data do not fit together.
    """
    page = ExplorerPage.model_validate(data)
    packed: dict[str, int] = {}  # base64 → its number on the page
    runs = []
    for run in page.runs:
        shown = [
            [
                {
                    "layers": [_layer(layer, packed) for layer in one.layers],
                    "next": one.next,
                    "change": one.change,
                }
                for one in step
            ]
            for step in run.shown
        ]
        runs.append(run.model_dump(exclude={"shown"}) | {"shown": shown})
    return render_page(
        HERE,
        page.title,
        [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS],
        asks=asked is not None,
        asked=asked,
        runs=page.runs,
        data={"sentences": [one.tokens for one in page.sentences], "runs": runs},
        packed=list(packed),
    )


def _layer(layer: Layer, packed: dict[str, int]) -> dict[str, Any]:
    """A layer whose matrices name their data by its number; equal ones have the same."""

    def number(matrices: Matrices | None) -> dict[str, Any] | None:
        if matrices is None:
            return None
        index = packed.setdefault(matrices.data, len(packed))
        return {"shape": matrices.shape, "scale": matrices.scale, "at": index}

    numbers = layer.model_dump(exclude=set(KINDS))
    return numbers | {kind: number(getattr(layer, kind)) for kind in KINDS}
