"""What ``explain`` finds of a batch, and what the explorer's page shows of one sample.

Shapes: L layers, B samples, H query heads, T queries, K keys, V words or classes.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorada.explore.packed import pack
from lorada.support.files import write_atomic

LIKELIEST = 10  # next tokens that are shown
KEPT = ("first", "previous", "itself", "other")  # what a query attends to
# The axes of every tensor.
AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("softmax", "without", "map", "fused"), ("sample", "head", "query", "key")),
    **dict.fromkeys(("negative", "map_negative", "effect", "moved"), ("head",)),
    "attends": ("kept", "head"),
    "change": ("layer",),
    "probabilities": ("sample", "word"),
}


@dataclass(frozen=True)
class ExplainedLayer:
    """One attention layer on one batch; ``AXES`` names the axes of its tensors.

    Attributes:
        layer: name of the attention module.
        softmax: Attn with the adapter, (B, H, T, K).
        without: Attn without the adapter, (B, H, T, K).
        map: tile(Attn_s), (B, H, T, K); None if the layer has no active map.
        fused: their sum, for ¬N the softmax with the map inside, (B, H, T, K).
        inside: whether the map is inside the softmax (¬N).
        negative: share of the visible entries of ``fused`` within the map below 0, (H,).
        map_negative: the same of ``map``, (H,).
        effect: effect of the map by head, (H,); None without a map.
        effect_size: that of all heads together.
        moved: how far the adapter moves the output of each head, (H,).
        attends: the shares of ``softmax`` on ``KEPT``, (4, H), means over queries.
    """

    layer: str
    softmax: Tensor
    without: Tensor
    map: Tensor | None
    fused: Tensor
    inside: bool
    negative: Tensor | None
    map_negative: Tensor | None
    effect: Tensor | None
    effect_size: float | None
    moved: Tensor
    attends: Tensor

    @property
    def shares(self) -> dict[str, Tensor]:
        """``attends`` by the names in ``KEPT``."""
        return dict(zip(KEPT, self.attends, strict=True))


@dataclass(frozen=True)
class Explanation(Sequence[ExplainedLayer]):
    """What an adapter does to a batch: a sequence of its layers, and what becomes of them.

    Attributes:
        layers: the attention layers, in order.
        parts: the names of the adapter's parts.
        change: "all", each part alone and ``head`` → the change of the hidden states after each
            layer, (L,).
        probabilities: "with", "without", each part alone and ``head`` → of the next token, or of
            the classes, (B, V); empty for a model that gives neither.
        ids: the tokens that were read, (B, T).
        real: which of them are tokens and not padding, (B, T).
        tokenizer: makes texts of tokens on the page; None for their numbers.
        head: what the trained copies of modules are called that the adapter has besides its parts:
            "head" for a model of classes, else "copies". A part alone has them too; under this
            name they are without any part. None if the adapter has none.
    """

    layers: list[ExplainedLayer]
    parts: list[str]
    change: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    ids: Tensor
    real: Tensor
    tokenizer: Any = None
    head: str | None = None

    def __len__(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """One layer, or some."""
        return self.layers[index]

    def to_html(self, path: str | Path) -> None:
        """Write a page for a browser that shows all of it, without a network.

        Raises:
            ValueError: for a batch of several samples.
            ImportError: without the extra ``explore``.
        """
        write_atomic(Path(path), page_of(self))

    def _repr_html_(self) -> str | None:
        """The page in a notebook; None, for the plain form, where it cannot be made."""
        try:
            page = page_of(self)
        except (ImportError, ValueError):
            return None
        return (
            f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts allow-downloads" '
            'style="width: 100%; height: 48rem; border: 0"></iframe>'
        )


def page_of(found: Explanation) -> str:
    """The explorer's page of an explanation.

    Raises:
        ValueError: for a batch of several samples, whose numbers by head are of all together.
        ImportError: without the extra ``explore``.
    """
    from lorada.explore.html_page import explorer_page

    if len(found.ids) > 1:
        raise ValueError(f"a page shows one sample, not {len(found.ids)}: explain them one by one")

    def word_of(token: int) -> str:
        return str(token) if found.tokenizer is None else str(found.tokenizer.decode([token]))

    ids = found.ids[0][found.real[0]].tolist()
    text = found.tokenizer.decode(ids, skip_special_tokens=True) if found.tokenizer else ""
    run = {
        "name": "adapter", "method": ", ".join(found.parts), "parts": found.parts,
        "head": found.head, "steps": [None], "shown": [[shown(found, 0, word_of)]],
    }  # fmt: skip
    sentences = [{"tokens": [*map(word_of, ids)], "text": text}]
    return explorer_page({"title": "adapter", "sentences": sentences, "runs": [run]})


def shown(found: Explanation, sample: int, word_of: Callable[[int], str]) -> dict[str, Any]:
    """The fields of the page's ``Shown`` for one sample.

    Layers that do not attend from the sample's tokens to themselves, such as those of a decoder
    that reads an encoder's text, are left out.

    Args:
        found: the explanation; its numbers by head are of the whole batch, so a batch of one.
        sample: which sample.
        word_of: the text of a token by its id, or the name of a class by its number.
    """
    count = found.ids.shape[1]
    fitting = [
        number for number, layer in enumerate(found) if layer.softmax.shape[-2:] == (count, count)
    ]
    real = found.real[sample]
    return {
        "layers": [_layer(found[number], sample, real) for number in fitting],
        "next": {
            name: _likeliest(one[sample], word_of) for name, one in found.probabilities.items()
        },
        "change": {
            name: [float(one[number]) for number in fitting if number < len(one)]
            for name, one in found.change.items()
        },
    }


def _layer(layer: ExplainedLayer, sample: int, real: Tensor) -> dict[str, Any]:
    def matrices(whole: Tensor | None) -> dict[str, Any] | None:
        if whole is None:
            return None
        return pack(whole[sample][:, real][:, :, real].float().numpy())

    def by_head(numbers: Tensor | None) -> list[float] | None:
        return None if numbers is None else [float(one) for one in numbers]

    return {
        "name": layer.layer.removeprefix("base_model.model."),
        "effect": by_head(layer.effect),
        "negative": by_head(layer.negative),
        "map_negative": by_head(layer.map_negative),
        "moved": by_head(layer.moved),
        "attends": {kind: by_head(numbers) for kind, numbers in layer.shares.items()},
        "softmax": matrices(layer.softmax),
        "map": matrices(layer.map),
        "without": matrices(layer.without),
        "inside": layer.inside,
        "fused": matrices(layer.fused) if layer.inside else None,
    }


def _likeliest(probabilities: Tensor, word_of: Callable[[int], str]) -> list[tuple[str, float]]:
    best = probabilities.topk(min(LIKELIEST, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(word_of(token), min(float(share), 1.0)) for token, share in pairs]
