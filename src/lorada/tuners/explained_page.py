"""Turns an explanation into what the explorer's page shows of one sample."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lorada.report.explorer.data import pack

if TYPE_CHECKING:
    from lorada.tuners.explanation import ExplainedLayer, Explanation

LIKELIEST = 10  # next tokens that are shown


def page_of(found: "Explanation") -> str:
    """The explorer's page of an explanation.

    Raises:
        ValueError: for a batch of several samples, whose numbers by head are of all together.
        ImportError: without the extra ``explore``.
    """
    from lorada.report.explorer.page import explorer_page

    if len(found.ids) > 1:
        raise ValueError(f"a page shows one sample, not {len(found.ids)}: explain them one by one")

    def word_of(token: int) -> str:
        return str(token) if found.tokenizer is None else str(found.tokenizer.decode([token]))

    tokens = [word_of(token) for token in found.ids[0][found.real[0]].tolist()]
    run = {
        "name": "adapter", "method": ", ".join(found.parts), "parts": found.parts,
        "head": found.head, "steps": [None], "shown": [[shown(found, 0, word_of)]],
    }  # fmt: skip
    return explorer_page({"title": "adapter", "sentences": [{"tokens": tokens}], "runs": [run]})


def shown(found: "Explanation", sample: int, word_of: Callable[[int], str]) -> dict[str, Any]:
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


def _layer(layer: "ExplainedLayer", sample: int, real: Tensor) -> dict[str, Any]:
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
