"""The explorer's page: one HTML file that works offline, and the plain data that it shows.

Of the page:
    sentences: of each its ``text``, and its ``tokens``, as the model reads them.
    run: what is shown of a run.
Of the run:
    name, method: of the run, and what it trained.
    parts: display names of the adapter's parts; none is ``with``, ``without`` or ``all``.
    head: display name of a trained head, which each part alone has too; None without one.
    shown: by sentence.
Of it on one sentence:
    layers: in the model's order, with the numbers of ``ExplainedLayer`` by head, and its matrices
        as ``pack`` makes them; the sum only where the map is ``inside`` the softmax.
    next: the likeliest next tokens, or classes, ``with`` the adapter, ``without`` it and with
        each part alone, and the head alone: up to ten of (token, probability), the likeliest first.
    change: ‖h_with − h_without‖ / ‖h_without‖ of the hidden state h after each layer, of
        ``all`` parts and of each alone. Shorter than ``layers`` if the last have no state.
"""

import base64
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FOLDER = Path(__file__).parent
SCRIPTS = ("basics.js", "matrices.js", "detail.js", "heads.js", "charts.js", "page.js")
LARGEST_INT16 = 32767


def pack(matrices: ArrayLike) -> dict[str, Any]:
    """A matrix for each head, (heads, queries, keys): value = int16 / 32767 · scale.

    ``scale`` is the largest absolute value, so the error is at most scale / 65534; ``data`` is
    base64 of raw deflate of little-endian int16.

    Raises:
        ValueError: for numbers that are not finite.
    """
    values = np.asarray(matrices, dtype=np.float64)
    scale = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(scale):
        raise ValueError("a matrix has a number that is not finite: the run may have diverged")
    # A matrix of zeros has the scale 0, and is divided by 1 instead.
    integers = np.rint(values / (scale or 1.0) * LARGEST_INT16).astype("<i2")
    # Window bits of -15 leave out zlib's header, as the browser's "deflate-raw" expects.
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(integers.tobytes()) + deflate.flush()
    return {
        "shape": list(values.shape),
        "scale": scale,
        "data": base64.b64encode(data).decode("ascii"),
    }


def explorer_page(data: Mapping[str, Any]) -> str:
    """The page as HTML; the same data, as this file says, always give the same page."""
    from lorada.support.html import render_page  # needs the extra

    scripts = [(FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return render_page(FOLDER, data["run"]["name"], scripts, run=data["run"], data=data)
