"""Makes a dataset of token ids from rows, pads batches, and fits lengths to the model's context.

``lost_and_first`` says of a dry run's rows how many are cut, and shows the first as it is read.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice, repeat
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorada.data.task import Kind
from lorada.data.task_rows import Rows, refuse_kind
from lorada.data.tokenize import (
    CHUNK,
    EMPTY,
    IGNORED,
    Encoded,
    EncodeOptions,
    TurnsRefused,
    encode,
    windows,
)
from lorada.runs.recipe import Recipe
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form

logger = logging.getLogger(__name__)

NOTHING = "give this tokenizer no token to read, or none to learn"


def encode_options(rows: Rows, recipe: Recipe, kind: Kind) -> EncodeOptions:
    """How rows are encoded: as the recipe says, or else as their protocol says."""
    protocol = rows.protocol
    usual = protocol.target_length and min(protocol.target_length, recipe.max_length)
    return EncodeOptions(
        recipe.max_length,
        recipe.loss_on or protocol.loss_on,
        rows.labels,
        joint=protocol.joint,
        kind=kind,
        target_length=recipe.max_target_length or usual,
        full=bool(protocol.lengths),  # as was published
        length_norm=recipe.length_norm or "tokens",
    )


def refuse_target_length(recipe: Recipe, rows: Rows, kind: Kind) -> None:
    """Refuse a ``max_target_length`` for rows of which it would cut nothing."""
    joint = rows.protocol.joint and kind == "decoder"
    if recipe.max_target_length is None or (rows.form == "prompt" and not joint):
        return
    why = f"{rows.path} has {rows.form} rows"
    if joint:
        why = f"a {kind} reads prompt and response of {rows.path} as one text"
    raise ValueError(
        f"max_target_length={recipe.max_target_length} cuts responses by themselves, and {why}: "
        "give max_length, the most tokens of a whole row, instead"
    )


def encode_rows(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    answered: bool = False,
    apart: bool = False,
) -> Dataset:
    """Tokenise rows; a warning says how many were cut or left out.

    If every row has to be ``answered`` by the model, none may be left out. Plain texts are joined,
    unless each is to be read ``apart``.
    """
    refuse_kind(rows, kind)
    options = replace(encode_options(rows, recipe, kind), apart=apart)
    every, length = len(rows.rows), recipe.max_length
    left_out: list[int] = []
    dropped = cut = 0

    def features() -> Iterator[dict[str, Any]]:
        nonlocal dropped, cut
        total = None if rows.form == "text" else every
        each = encode_each(rows, tokenizer, options)
        for index, one in progress_bar(each, f"Encoding {rows.path}", total=total):
            if one is None or one is EMPTY:
                left_out.append(index)
                dropped += one is None
            else:
                cut += one.truncated
                yield one.features

    dataset = dataset_of(features())
    # An encoder–decoder may have to answer held-out rows while it trains.
    if (answered or kind == "encoder_decoder") and left_out:
        raise ValueError(
            f"{rows.place(left_out[0])} cannot be answered: a text of "
            f"it gives this tokenizer no token, or is longer than max_length={length}: "
            "correct it, or raise max_length"
        )
    if empty := len(left_out) - dropped:
        logger.warning("%s: %d of %d rows were left out: they %s", rows.path, empty, every, NOTHING)
    if cut or dropped:
        more = f", {dropped} more were left out because nothing of the response was left"
        target = options.target_length
        logger.warning("%s: %d of %d rows were cut to max_length=%d%s%s", rows.path, cut, every,
                       length, f", the response to max_target_length={target}" if target else "",
                       more if dropped else "")  # fmt: skip
    if dataset is not None:
        return dataset
    if not dropped and length > 1:
        raise ValueError(f"{rows.path} has no row to learn from: they all {NOTHING}")
    raise ValueError(
        f"no row of {rows.path} fits: every response lies beyond max_length={length}; raise it"
    )


def kept_rows(
    rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> list[int]:
    """The indices of the rows that ``encode_rows`` keeps; for every form but ``text``."""
    each = encode_each(rows, tokenizer, encode_options(rows, recipe, kind))
    return [index for index, one in each if one is not None and one is not EMPTY]


def encode_each(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[tuple[int, Encoded | None]]:
    """The index of each row and what ``encode`` gives for it; 0 and a window for plain texts."""
    if rows.form == "text":
        yield from zip(repeat(0), windows(rows.rows, tokenizer, options))
        return
    index = 0
    try:
        for one in encode(rows.rows, rows.form, tokenizer, options):
            yield index, one
            index += 1
    except TurnsRefused as error:
        raise ValueError(f"{rows.place(index)}: {error}") from error


def dataset_of(features: Iterator[dict[str, Any]]) -> Dataset | None:
    """A dataset in Arrow's memory, made chunk by chunk: Python's lists take ten times as much."""
    parts: list[Dataset] = []
    while chunk := list(islice(features, CHUNK)):
        parts.append(Dataset.from_list(chunk))
    return concatenate_datasets(parts) if parts else None


def token_counts(dataset: Dataset) -> list[int]:
    """Tokens of each encoded row; of the longest candidate where there are several."""
    if "length" in dataset.column_names:
        return list(dataset["length"])
    return [len(ids) for ids in dataset["input_ids"]]


def collator(
    form: Form, tokenizer: PreTrainedTokenizerBase, model: Any = None
) -> Callable[..., Any]:
    """The collator for rows of a form: it pads a batch to its longest row, labels included.

    An encoder–decoder is passed as ``model``: its decoder's input is made from the labels here,
    because label smoothing takes the labels away before the forward.
    """
    if form in HEADED:
        pad: Callable[..., Any] = DataCollatorWithPadding(tokenizer)
    elif form == "choice":
        pad = ChoiceCollator(tokenizer)
    else:
        # No other model goes along to the processes that make batches.
        writer = model if model is not None and model.config.is_encoder_decoder else None
        pad = DataCollatorForSeq2Seq(tokenizer, writer, label_pad_token_id=IGNORED)
    return pad


class ChoiceCollator:
    """Makes a batch of one sequence per candidate of each row: left pads, prompt, candidate.

    ``labels`` has the tokens of the candidates, ``divisors`` what the log-probability of each is
    divided by, ``groups`` the number of candidates of each row, and ``answers`` the index of the
    right one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad: int = tokenizer.pad_token_id

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch with every candidate of every row."""
        batch = self._batch((row["prompt"], ids) for row in features for ids in row["candidates"])
        batch["divisors"] = torch.tensor([x for row in features for x in row["divisors"]])
        batch["groups"] = torch.tensor([len(row["candidates"]) for row in features])
        batch["answers"] = torch.tensor([row["answer"] for row in features])
        return batch

    def plain(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch with only the right candidate of every row, as a language model is trained."""
        return self._batch((row["prompt"], row["candidates"][row["answer"]]) for row in features)

    def _batch(self, pairs: Iterable[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        sequences = [(prompt + ids, len(prompt)) for prompt, ids in pairs]
        shape = len(sequences), max(len(ids) for ids, _ in sequences)
        batch = {
            "input_ids": torch.full(shape, self.pad),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for number, (ids, prompt) in enumerate(sequences):
            batch["input_ids"][number, -len(ids) :] = torch.tensor(ids)
            batch["attention_mask"][number, -len(ids) :] = 1
            scored = len(ids) - prompt
            batch["labels"][number, -scored:] = torch.tensor(ids[prompt:])
        return batch


def context_of(model_config: Any) -> int | None:
    """The most tokens that a model can read; None if its config does not say."""
    context = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:  # XLNet has -1, for no limit
        return None
    # RoBERTa's positions begin after the id of its pad token.
    shifted = model_config.model_type in ("roberta", "xlm-roberta")
    return context - (model_config.pad_token_id + 1 if shifted else 0)


def fit_context(recipe: Recipe, model_config: Any) -> Recipe:
    """The recipe, its ``max_length`` and ``max_target_length`` within what the model can read."""
    context = context_of(model_config)
    longest = max(recipe.eval_lengths or [0])
    if context is not None and longest > context:
        raise ValueError(
            f"eval_lengths={recipe.eval_lengths}: the model's context is {context} tokens; ask for "
            f"shorter ones, or stretch its positions with rope_factor={-(-longest // context)}"
        )
    for name in ("max_length", "max_target_length"):
        length = getattr(recipe, name)
        if context is not None and length is not None and length > context:
            logger.warning("%s=%d is cut to the model's %d", name, length, context)
            recipe = recipe.model_copy(update={name: context})
    return recipe


def lost_and_first(
    rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """What becomes of the rows when they are encoded, and the first that is learned.

    The counts are of rows ``cut`` to length, ``dropped`` because nothing to learn is left of them,
    ``empty`` from the beginning, and ``copies`` of earlier rows.
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
