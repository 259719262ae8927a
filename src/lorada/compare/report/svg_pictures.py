"""Turns figures into SVG that has the colours of its page, and into files to save.

Each picture is drawn twice, for wide and for narrow screens, as letters of a picture that shrinks
with the screen could not be read. Matplotlib comes with the extra ``compare``.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorada.support.error_messages import needs_extra

with needs_extra("compare"):
    import matplotlib
    from matplotlib.figure import Figure

# Colours that stand for those of the page, which light, dark and print set: see page.css.
INK = "#0a0b0c"  # of the text
ACCENT = "#0a0b0d"  # of what is to be seen first
ON_PAGE: Mapping[str, str] = {INK: "currentColor", ACCENT: "var(--mark)"}
IN_FILE: Mapping[str, str] = {INK: "#1b1b1b", ACCENT: "#0064a8"}  # on white, wherever it is pasted
WIDE, NARROW = 10.0, 4.3  # inches
LONGEST = 36  # letters of a name; the rest is cut off
SETTINGS = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color",
         "grid.color"), INK,
    ),
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9,
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15,
}  # fmt: skip

Draw = Callable[[float], Figure | None]  # a figure of a width in inches; None of nothing


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        name: of the file in which it is saved, without its ending.
        text: what it shows, for those who cannot see it.
        caption: how it is to be read.
        wide: SVG for a wide screen.
        narrow: SVG for a narrow one.
        address: the wide one as a file to save, as a ``data:`` address.
    """

    name: str
    text: str
    caption: str
    wide: str
    narrow: str
    address: str


def picture(name: str, draw: Draw, text: str, caption: str) -> Picture | None:
    """A picture in both widths, the same for the same numbers; None if there is nothing to draw."""
    wide, narrow = _svg(f"{name}-wide", draw, WIDE), _svg(f"{name}-narrow", draw, NARROW)
    if not wide or not narrow:
        return None
    file = _coloured(wide, IN_FILE).replace("<svg ", '<svg style="background: #fff" ', 1)
    address = "data:image/svg+xml;base64," + base64.b64encode(file.encode()).decode()
    on_page = _coloured(wide, ON_PAGE), _coloured(narrow, ON_PAGE)
    return Picture(name, text, caption, *on_page, address)


def _svg(name: str, draw: Draw, width: float) -> str:
    """A figure as SVG with the colours that stand for others; empty if there is none."""
    # Markers and clips are named after what they are and the salt: no two pictures share a name.
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = draw(width)
        if figure is None:
            return ""
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    document = file.getvalue()
    svg = document[document.index("<svg") :]  # without the header of an XML file
    # Groups are numbered through, and another picture on the page would have the same numbers.
    return re.sub(r' id="[\w.]+_\d+"', "", svg)


def _coloured(svg: str, colours: Mapping[str, str]) -> str:
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name as a picture has room for it."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
