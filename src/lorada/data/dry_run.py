"""What a dry run says of rows: how long they are, how many are cut, and the first as it is read."""

import json
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.data.batches import IGNORED
from lorada.data.row_lengths import EncodingLog, RowLengths, lengths_of
from lorada.data.rows.rows import Rows
from lorada.data.task import Kind
from lorada.data.tokenize import encode_each, encode_options, refuse_lost
from lorada.runs.recipe import Recipe
from lorada.support.row_sources import HEADED, Form, Row

# What a row of a form has nothing to read or to learn without.
BLANK: dict[Form, tuple[str, ...]] = {
    "text": ("text",), "prompt": ("response",),
    "label": ("text", "text_pair"), "labels": ("text", "text_pair"), "score": ("text", "text_pair"),
}  # fmt: skip


@dataclass(frozen=True)
class FirstRow:
    """The first row that is learned, as the model reads it.

    Attributes:
        row: its number in its file, from 1; None for a window of joined texts.
        tokens: how many tokens it has.
        counted: how many of these count in the loss.
        pieces: its stretches of text, each with whether its tokens count.
        learned: what a head learns of it; None where tokens are learned.
    """

    row: int | None
    tokens: int
    counted: int
    pieces: list[tuple[str, bool]]
    learned: Any


@dataclass(frozen=True)
class ExaminedRows:
    """What a dry run says of rows."""

    lengths: RowLengths | None  # None for texts, which are joined
    empty: int  # rows that have nothing to read or to learn
    copies: int  # rows that are copies of earlier ones
    first: FirstRow | None  # None if no row is learned


def examine_rows(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    reads: int | None = None,
) -> ExaminedRows:
    """Encode rows as a training does, and refuse what it refuses; nothing is kept of them.

    ``reads`` is how many tokens the model reads, if that is known.
    """
    options, log = encode_options(rows, recipe, kind), EncodingLog()
    first: FirstRow | None = None
    for index, features in encode_each(rows, tokenizer, options, log):
        if first is None:
            first = _first_row(rows, index, features, tokenizer, kind)
    refuse_lost(rows, options, log)
    lengths = lengths_of(log, options.max_length, options.target_length, reads)
    empty = lengths.empty
    # Such rows are encoded: texts are joined, a head reads [CLS], and an answer has its end.
    if rows.form in BLANK:
        empty = sum(_is_blank(row, BLANK[rows.form]) for row in rows.rows)
    different = {json.dumps(row, sort_keys=True) for row in rows.rows}
    copies = len(rows.rows) - len(different)
    return ExaminedRows(None if rows.form == "text" else lengths, empty, copies, first)


def _is_blank(row: Row, names: tuple[str, ...]) -> bool:
    return not any(row.get(name, "").strip() for name in names)


def _first_row(
    rows: Rows, index: int, features: dict[str, Any], tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> FirstRow:
    """A row as it is encoded."""
    pieces = _pieces(rows.form, features, kind)
    return FirstRow(
        row=None if rows.form == "text" else rows.number(index),
        tokens=sum(len(ids) for ids, _ in pieces),
        counted=sum(len(ids) for ids, counts in pieces if counts),
        pieces=[(tokenizer.decode(ids), counts) for ids, counts in pieces],
        learned=_learned_by_head(rows, features),
    )


def _pieces(form: Form, features: dict[str, Any], kind: Kind) -> list[tuple[list[int], bool]]:
    """The stretches of token ids of an encoded row, each with whether it counts in the loss."""
    if form == "choice":
        right = features["candidates"][features["answer"]]
        return [(features["prompt"], False), (right, True)]
    if form in HEADED:
        return [(features["input_ids"], False)]
    if kind == "encoder_decoder":
        return [(features["input_ids"], False), (features["labels"], True)]
    counts = [label != IGNORED for label in features["labels"]]
    counts[0] = False  # the first token is never predicted
    pieces = []
    tokens = zip(features["input_ids"], counts, strict=True)
    for is_counted, group in groupby(tokens, key=itemgetter(1)):
        pieces.append(([token for token, _ in group], is_counted))
    return pieces


def _learned_by_head(rows: Rows, features: dict[str, Any]) -> Any:
    """What a head learns of a row, by the names of classes and labels; None without a head."""
    if rows.form not in HEADED:
        return None
    output = features["labels"]
    if rows.form == "label":
        return rows.labels[output]
    if rows.form == "labels":
        return [name for name, applies in zip(rows.labels, output, strict=True) if applies]
    return output
