"""What a dry run says of the rows: how many are cut, and the first as the model reads it."""

import json
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.data.dataset import encode_each, encode_options
from lorada.data.task import Kind
from lorada.data.task_rows import Rows
from lorada.data.tokenize import EMPTY, IGNORED, Encoded
from lorada.runs.recipe import Recipe
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED


def read_rows(
    rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """What becomes of the rows when they are encoded, and the first that is learned.

    Returns:
        How many rows are ``cut`` to length, ``dropped`` because nothing to learn is left of them,
        ``empty`` from the beginning, and ``copies`` of earlier rows; and ``first_row``.
    """
    each = encode_each(rows, tokenizer, encode_options(rows, recipe, kind))
    counts, first = dict.fromkeys(("cut", "dropped", "empty"), 0), None
    total = None if rows.form == "text" else len(rows.rows)
    for index, one in progress_bar(each, f"Encoding {rows.path}", total=total):
        if one is None or one is EMPTY:
            counts["dropped" if one is None else "empty"] += 1
        else:
            counts["cut"] += one.truncated
            first = first or first_row(rows, index, one, tokenizer, kind)
    if rows.form == "text":  # which are joined
        counts["empty"] = sum(not row["text"].strip() for row in rows.rows)
    different = {json.dumps(row, sort_keys=True) for row in rows.rows}
    return {**counts, "copies": len(rows.rows) - len(different)}, first


def first_row(
    rows: Rows, index: int, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> dict[str, Any]:
    """A row, by its index and as it is encoded, as text.

    Returns:
        ``row``, its number from 1, None for a window of joined texts; ``tokens``, how many are read
        or written; ``counted``, how many of them count in the loss; ``pieces``, stretches of text
        with whether their tokens count; ``learned``, the class or the number that a head learns,
        None for other rows.
    """
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
