"""What the explorer's page shows: sentences, runs, and the numbers of each layer and head.

Shapes: H heads, T tokens that look (queries), K tokens that are looked at (keys).
"""

import base64
import math
import zlib
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST = 32767  # the largest int16
BASE64 = r"^[A-Za-z0-9+/]*={0,2}$"

Number = Annotated[float, Field(allow_inf_nan=False)]
PerHead = list[Number]


def _written(text: str) -> str:
    """The text without half characters, which no file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


Text = Annotated[str, AfterValidator(_written)]


class Part(BaseModel):
    """Anything below: without unknown fields, and unchanged once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Matrices(Part):
    """A matrix for each head, as ``pack`` makes it: value = int16 / 32767 · scale.

    Attributes:
        shape: heads, T, K. Fewer heads than the layer has are repeated: head i has i mod heads.
        scale: the largest absolute value.
        data: base64 of raw deflate of little-endian int16.
    """

    shape: tuple[int, int, int]
    scale: Annotated[Number, Field(ge=0)]
    data: Annotated[str, Field(pattern=BASE64)]


class Layer(Part):
    """One attention layer on one sentence.

    Attributes:
        name: of the attention module.
        effect: ‖map·V‖ / ‖softmax·V‖ of each head; None without a map.
        negative: share of the visible entries of the sum below 0, by head.
        map_negative: the same of the map.
        moved: ‖O_with − O_without‖ / ‖O_without‖ of each head's output O, before the output
            projection.
        attends: shares of the softmax that go to the first token, the one before, the token itself
            and others; they sum to 1.
        softmax: with the adapter on.
        map: as it is added; None where the layer has none.
        without: the softmax with the adapter off.
        inside: whether the map enters the softmax, so that the sum is ``fused``.
        fused: the softmax with the map inside.
    """

    name: Text
    effect: PerHead | None = None
    negative: PerHead | None = None
    map_negative: PerHead | None = None
    moved: PerHead
    attends: dict[Literal["first", "previous", "itself", "other"], PerHead]
    softmax: Matrices
    map: Matrices | None = None
    without: Matrices
    inside: bool = False
    fused: Matrices | None = None


class Shown(Part):
    """A run on one sentence.

    Attributes:
        layers: in the model's order.
        next: the likeliest next tokens, or classes, ``with`` the adapter, ``without`` it and with
            each part alone: up to ten of (token, probability), the likeliest first.
        change: ‖h_with − h_without‖ / ‖h_without‖ of the hidden state h after each layer, of
            ``all`` parts and of each alone. Shorter than ``layers`` if the last have no state.
    """

    layers: Annotated[list[Layer], Field(min_length=1)]
    next: dict[Text, list[tuple[Text, Annotated[Number, Field(ge=0, le=1)]]]]
    change: dict[Text, list[Number]]


class RunShown(Part):
    """A run, at one or more steps of its training.

    Attributes:
        name: of the run.
        method: what it trained.
        parts: display names of the adapter's parts.
        steps: of the checkpoints, ascending; None for the finished run.
        shown: by step, then by sentence.
    """

    name: Text
    method: Text
    parts: list[Text]
    steps: Annotated[list[int | None], Field(min_length=1)]
    shown: list[list[Shown]]


class Sentence(Part):
    """A sentence as the model reads it."""

    tokens: Annotated[list[Text], Field(min_length=1)]


class ExplorerPage(Part):
    """All that the page shows: one run, or two side by side."""

    title: Text
    sentences: Annotated[list[Sentence], Field(min_length=1)]
    runs: Annotated[list[RunShown], Field(min_length=1, max_length=2)]


def pack(matrices: ArrayLike) -> dict[str, Any]:
    """The fields of ``Matrices`` for an array (heads, T, K); its error is at most scale / 65534.

    Heads that repeat, as those of a map with fewer heads than the model, are kept once.

    Raises:
        ValueError: if the array has another number of dimensions or a number that is not finite.
    """
    values = np.asarray(matrices, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"matrices of shape {values.shape} are not (heads, queries, keys)")
    scale = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(scale):
        raise ValueError("a matrix has a number that is not finite: the run may have diverged")
    values = _without_repeats(values)
    whole = np.rint(values / (scale or 1.0) * MOST).astype("<i2")
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(whole.tobytes()) + deflate.flush()
    return {
        "shape": list(values.shape),
        "scale": scale,
        "data": base64.b64encode(data).decode("ascii"),
    }


def _without_repeats(values: NDArray[np.float64]) -> NDArray[np.float64]:
    heads = len(values)
    for few in range(1, heads):
        if heads % few == 0 and (values == np.tile(values[:few], (heads // few, 1, 1))).all():
            return values[:few]
    return values
