"""The loss of each row that a model should still do, in nats a token.

Right answers are scored and none is written, so that many rows cost little. A plain text is scored
whole, from its second token on. The token that ends a text or a response does not count: a training
on any rows teaches a model to end, which is no part of what it could do before.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lorada.data.batches import IGNORED, dataset_of
from lorada.data.rows.rows import Rows
from lorada.data.task import Kind
from lorada.data.tokenize import EncodeOptions, encode, encode_options, written_calls
from lorada.inference.answer_rows import answer_rows, summed_losses
from lorada.inference.load import Run, scoring
from lorada.runs.recipe import Recipe
from lorada.support.row_sources import HEADED


def row_losses(run: Run, rows: Rows, *, base: bool = False) -> list[float | None]:
    """The loss of each row, in order; None for one that has nothing to score within max_length.

    ``base`` switches the adapter off.

    It is the mean over the tokens of its answer, or of a text; of classes, numbers and candidates
    it is that of the row, as ``RowAnswer`` has it.
    """
    rows = written_calls(rows, run.tokenizer)
    with scoring(run, base=base):
        if rows.form in HEADED or rows.form == "choice":
            answers = dict(answer_rows(run, rows))
            return [answers[index].loss for index in range(len(rows.rows))]
        row_of_piece, pieces = _encoded(run.recipe, rows, run.tokenizer, run.kind)
        dataset = dataset_of(iter(pieces))
        if dataset is None:
            return [None] * len(rows.rows)
        sums, counts = summed_losses(run, rows, dataset)
    totals = [0.0] * len(rows.rows)
    tokens = [0] * len(rows.rows)
    for row, loss, count in zip(row_of_piece, sums.tolist(), counts.tolist(), strict=True):
        totals[row] += loss
        tokens[row] += int(count)
    return [total / count if count else None for total, count in zip(totals, tokens, strict=True)]


def count_scored(recipe: Recipe, rows: Rows, tokenizer: Any, kind: Kind) -> int:
    """How many of the rows have something to score, before a model is loaded.

    Raises:
        ValueError: for a row that this tokenizer's chat template refuses, or a choice or text with
            a class that cannot be read.
    """
    rows = written_calls(rows, tokenizer)
    if rows.form in HEADED or rows.form == "choice":
        return len(rows.rows)
    row_of_piece, _ = _encoded(recipe, rows, tokenizer, kind)
    return len(set(row_of_piece))


def _encoded(
    recipe: Recipe, rows: Rows, tokenizer: Any, kind: Kind
) -> tuple[list[int], list[dict[str, Any]]]:
    """Pieces of at most ``max_length`` tokens, and the row of each; only texts have several."""
    options = replace(encode_options(rows, recipe, kind), full=False)
    row_of_piece, pieces = [], []
    for index in range(len(rows.rows)):
        with rows.placing(index):
            for features in _pieces_of(rows, index, tokenizer, options):
                row_of_piece.append(index)
                pieces.append(features)
    return row_of_piece, pieces


def _pieces_of(
    rows: Rows, index: int, tokenizer: Any, options: EncodeOptions
) -> Iterator[dict[str, Any]]:
    """The encoded pieces of one row without the label of a last token that ends it."""
    for encoded in encode([rows.rows[index]], rows.form, tokenizer, options):
        features = encoded.features
        if features is None:
            continue
        labels = features["labels"]
        ends = rows.form != "messages" and labels[-1] == tokenizer.eos_token_id
        if ends:  # a chat's turn ends as its template says, which is a part of the chat
            labels = [*labels[:-1], IGNORED]
        # A decoder is never asked for the first token, but the decoder behind an encoder is.
        predicted = labels if options.kind == "encoder_decoder" else labels[1:]
        if any(label != IGNORED for label in predicted):
            yield {**features, "labels": labels}
