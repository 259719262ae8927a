"""Data sets of encoded rows, and padded batches of these."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorada.support.row_sources import HEADED, Form

IGNORED = -100  # the label that transformers' losses leave out
ROWS_AT_ONCE = 1000


def dataset_of(features: Iterator[dict[str, Any]]) -> Dataset | None:
    """A dataset in Arrow's memory, made chunk by chunk: Python's lists take ten times as much."""
    parts: list[Dataset] = []
    for first in features:
        chunk = [first, *islice(features, ROWS_AT_ONCE - 1)]
        parts.append(Dataset.from_list(chunk))
    return concatenate_datasets(parts) if parts else None


def token_counts(dataset: Dataset) -> list[int]:
    """Tokens of each encoded row; of the longest candidate where there are several."""
    if "length" in dataset.column_names:
        return list(dataset["length"])
    return [len(ids) for ids in dataset["input_ids"]]


def collator(form: Form, tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """The collator for rows of a form: it pads a batch to its longest row, labels included.

    An encoder–decoder is passed as ``model``: its decoder's input is made from the labels here,
    because label smoothing takes the labels away before the forward.
    """
    if form in HEADED:
        return DataCollatorWithPadding(tokenizer)
    if form == "choice":
        return partial(_choice_batch, pad=tokenizer.pad_token_id)
    if model is not None and not model.config.is_encoder_decoder:
        model = None  # which would go along to the processes that make batches
    return DataCollatorForSeq2Seq(tokenizer, model, label_pad_token_id=IGNORED)


def _choice_batch(features: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of one sequence per candidate of each row: left pads, prompt, candidate.

    ``labels`` has the tokens of the candidates, ``divisors`` what the log-probability of each is
    divided by, ``groups`` the number of candidates of each row, and ``answers`` the index of the
    right one.
    """
    input_ids, labels, divisors = [], [], []
    for row in features:
        prompt = row["prompt"]
        for candidate in row["candidates"]:
            input_ids.append(torch.tensor(prompt + candidate))
            labels.append(torch.tensor([IGNORED] * len(prompt) + candidate))
        divisors += row["divisors"]
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    return {
        "input_ids": padded(input_ids, padding_value=pad),
        "attention_mask": padded([torch.ones_like(ids) for ids in input_ids]),
        "labels": padded(labels, padding_value=IGNORED),
        "divisors": torch.tensor(divisors),
        "groups": torch.tensor([len(row["candidates"]) for row in features]),
        "answers": torch.tensor([row["answer"] for row in features]),
    }
