"""``first_row``: a row of the training as the model reads it, and which of its tokens count."""

from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.data.rows import HEADED
from lorada.data.task import Kind
from lorada.data.tokenize import EMPTY, IGNORED
from lorada.runs.data.dataset import encode_each, encode_options
from lorada.runs.data.rows import Rows
from lorada.runs.recipe import Recipe


def first_row(
    rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> dict[str, Any] | None:
    """The first row that is learned, as text; None if there is none.

    Returns:
        ``row``, its number from 1, None for a window of joined texts; ``tokens``, how many are read
        or written; ``counted``, how many of them count in the loss; ``pieces``, stretches of text
        with whether their tokens count; ``learned``, the class or the number that a head learns,
        None for other rows.
    """
    options = encode_options(rows, recipe, kind)
    found = encode_each(rows, tokenizer, options)
    index, encoded = next(((i, one) for i, one in found if one and one is not EMPTY), (0, None))
    if encoded is None:
        return None
    features = encoded.features
    marked = _marked(rows, features, kind)
    pieces = [
        (tokenizer.decode([token for token, _ in group]), counts)
        for counts, group in groupby(marked, key=lambda pair: pair[1])
    ]
    learned = features["labels"] if rows.form == "score" else None
    if rows.form == "label":
        learned = rows.labels[features["labels"]]
    return {
        "row": None if rows.form == "text" else rows.number(index),
        "tokens": len(marked), "counted": sum(c for _, c in marked),
        "pieces": pieces, "learned": learned,
    }  # fmt: skip


def _marked(rows: Rows, features: dict[str, Any], kind: Kind) -> list[tuple[int, bool]]:
    """Each token that is read or written, with whether it counts in the loss."""
    if rows.form == "choice":
        right = features["candidates"][features["answer"]]
        return [(t, False) for t in features["prompt"]] + [(t, True) for t in right]
    read, labels = features["input_ids"], features["labels"]
    if rows.form in HEADED:
        return [(token, False) for token in read]
    if kind == "encoder_decoder":
        return [(token, False) for token in read] + [(token, True) for token in labels]
    # The first token is never predicted.
    return [(t, i > 0 and labels[i] != IGNORED) for i, t in enumerate(read)]
