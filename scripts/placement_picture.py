"""A small picture of one decoder layer, with what a method trains in it, as SVG.

What trains is read from the names of the parameters once the method is placed on a model, so the
picture shows what the library does.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["part", "weights", "biases"]


@dataclass(frozen=True)
class Box:
    """A rectangle with a word in it, in pixels."""

    x: int
    y: int
    width: int
    height: int
    word: str


# What every layer has.
LAYER = {
    "attention norm": Box(22, 62, 12, 26, ""),
    "q": Box(52, 36, 34, 22, "q"),
    "k": Box(52, 64, 34, 22, "k"),
    "v": Box(52, 92, 34, 22, "v"),
    "softmax": Box(108, 44, 66, 34, "softmax"),
    "o": Box(200, 64, 34, 22, "o"),
    "FFN norm": Box(284, 62, 12, 26, ""),
    "gate": Box(314, 48, 42, 22, "gate"),
    "up": Box(314, 80, 42, 22, "up"),
    "down": Box(378, 64, 46, 22, "down"),
}
# What a method may add to it.
ADDED = {
    "the map": Box(108, 92, 66, 22, "map"),
    "a prefix before the keys and values": Box(52, 122, 46, 22, "prefix"),
    "an adapter beside attention": Box(108, 8, 66, 22, "adapter"),
    "an adapter after attention": Box(240, 64, 22, 22, "A"),
    "an adapter beside the FFN": Box(334, 8, 66, 22, "adapter"),
    "an adapter after the FFN": Box(432, 64, 22, 22, "A"),
    "an adapter beside up": Box(314, 110, 42, 22, "A"),
    "an adapter beside down": Box(378, 110, 46, 22, "A"),
}
LINES = (
    "M6 75H22 M34 75H52 M42 47V103 M42 47H52 M42 103H52 M86 47H97V56H108 M86 75H97V66H108 "
    "M86 103H186V75 M174 61H186V75 M186 75H200 M234 75H268 M278 75H284 M296 75H305 "
    "M305 59V91 M305 59H314 M305 91H314 M356 59H367V75 M356 91H367V75 M367 75H378 M424 75H460 "
    "M14 75V30H273V70 M275 75V35H465V70 M470 75H488"
)
# Lines that only an added box has: around attention, around the FFN, around a matrix.
WAYS = {
    "an adapter beside attention": "M42 47V19H108 M174 19H192V75",
    "an adapter beside the FFN": "M305 59V19H334 M400 19H429V75",
    "an adapter beside up": "M305 91V121H314 M356 121H363V75",
    "an adapter beside down": "M367 75V121H378 M424 121H434V75",
    "a prefix before the keys and values": "M75 122V114",
}
# The end of a parameter's name, behind ``layers.0.`` → the box that it belongs to.
PLACES = (
    (r"self_attn\.lmam\.", "the map"),
    (r"self_attn\.prefix\.", "a prefix before the keys and values"),
    (r"self_attn\.bneck_pa_attn\.", "an adapter beside attention"),
    (r"self_attn\.bneck_houlsby", "an adapter after attention"),
    (r"mlp\.bneck_(houlsby|pfeiffer|series_down_proj)\.", "an adapter after the FFN"),
    (r"mlp\.bneck_parallel_up_proj\.", "an adapter beside up"),
    (r"mlp\.bneck_parallel_down_proj\.", "an adapter beside down"),
    (r"mlp\.bneck\.", "an adapter beside the FFN"),
    (r"self_attn\.([qkvo])_proj\.", None),  # None: the box of that name
    (r"mlp\.(gate|up|down)_proj\.", None),
    (r"input_layernorm\.", "attention norm"),
    (r"post_attention_layernorm\.", "FFN norm"),
)


def placements(trained: Iterable[str]) -> dict[str, Kind]:
    """The boxes in which something trains, in the order of the layer.

    Args:
        trained: names of the parameters that train.

    Raises:
        ValueError: a parameter of the first layer belongs to no box.
    """
    found: dict[str, Kind] = {}
    for name in trained:
        _, inside, rest = name.partition("layers.0.")
        if not inside:
            continue  # embeddings, the output layer, and other layers, which are alike
        box, kind = _box_of(rest), _kind_of(rest)
        if kind == "biases":  # a matrix whose weights train too is shown by these
            found.setdefault(box, kind)
        else:
            found[box] = kind
    order = [*LAYER, *ADDED]
    return dict(sorted(found.items(), key=lambda place: order.index(place[0])))


def _box_of(name: str) -> str:
    for pattern, box in PLACES:
        match = re.match(pattern, name)
        if match is not None:
            return box or match[1]
    raise ValueError(f"the picture of a layer has no place for {name}: add one to PLACES")


def _kind_of(name: str) -> Kind:
    if re.search(r"(proj|layernorm)(\.modules_to_save(\.default)?)?\.weight$", name):
        return "weights"
    return "biases" if re.search(r"proj\.bias$", name) else "part"


def picture(places: dict[str, Kind], title: str) -> str:
    """The layer as SVG, with the boxes in which something trains in colour."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 494 150" width="494" height="150">',
        f"<title>{title}</title>",
        "<style>text{font:12px sans-serif;text-anchor:middle;fill:#808080}"
        "rect,path,circle{stroke:#808080;fill:none}"
        ".part,.weights{fill:#2f6fd0;stroke:#2f6fd0}.biases{stroke:#2f6fd0;stroke-width:3}"
        ".part+text,.weights+text{fill:#fff}</style>",
        f'<path d="{LINES}"/>',
        '<circle cx="273" cy="75" r="5"/><circle cx="465" cy="75" r="5"/>',
    ]
    lines += [f'<path d="{WAYS[name]}"/>' for name in places if name in WAYS]
    lines += _boxes(places)
    return "\n".join([*lines, "</svg>", ""])


def _boxes(places: dict[str, Kind]) -> Iterator[str]:
    for name, box in {**LAYER, **ADDED}.items():
        if name in ADDED and name not in places:
            continue
        kind = f' class="{places[name]}"' if name in places else ""
        size = f'width="{box.width}" height="{box.height}" rx="3"'
        yield f'<rect{kind} x="{box.x}" y="{box.y}" {size}/>'
        if box.word:
            x, y = box.x + box.width / 2, box.y + box.height / 2 + 4
            yield f'<text x="{x:g}" y="{y:g}">{box.word}</text>'
