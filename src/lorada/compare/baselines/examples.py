"""Prompts with examples: training rows and their right answers, ahead of the row that is asked.

Examples stand as they would in a training: as turns of a chat by the model's template, or as texts
with a blank line between them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lorada.data.chats import ASSISTANT
from lorada.data.forms.row_values import GROUP
from lorada.data.rows.row_content import answer_of, content_of
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import prompt_of
from lorada.support.row_sources import Row

# Behind each example that is a text: the first that no right answer has.
SEPARATORS = ("\n\n", "\n\n###\n\n")
Style = Literal["chat", "text"]
WAYS: dict[Style, str] = {"chat": "asked by the chat template", "text": "asked as a text"}


@dataclass(frozen=True)
class AskedRow:
    """What a model is asked for one row."""

    prompt: str
    examples: int  # how many examples it has
    tokens: int  # of the prompt


def styles_for(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[Style]:
    """How rows can be asked: chats by the template alone, prompts as texts too."""
    if rows.form == "messages":
        return ["chat"]
    return ["text", "chat"] if tokenizer.chat_template else ["text"]


def separator_of(train: Rows) -> str:
    """What stands between examples that are texts, at which the model's own answer ends."""
    for separator in SEPARATORS:
        if not any(separator in answer_of(row) for row in train.rows):
            return separator
    return SEPARATORS[-1]


def asked_rows(
    rows: Rows,
    train: Rows,
    *,
    shots: int,
    draw: int,
    style: Style,
    tokenizer: PreTrainedTokenizerBase,
    room: int | None,
) -> list[AskedRow]:
    """The prompt of each row, with examples ahead of it.

    The examples of all rows are the first of one order of the training rows, except for those that
    share the ``group`` of the row that is asked, or are the same row.

    Args:
        rows: that are asked.
        train: that examples are taken from.
        shots: how many examples a prompt has, if so many fit.
        draw: the seed of the order.
        style: how they are written.
        tokenizer: the model's.
        room: how many tokens a prompt may have; None for any number.
    """
    order = random.Random(draw).sample(train.rows, len(train.rows))
    separator = separator_of(train) if style == "text" and shots else ""
    asked = []
    for index, row in enumerate(rows.rows):
        with rows.placing(index):
            examples = _examples_for(row, order, shots)
            asked.append(_fitting(row, examples, style, separator, tokenizer, room))
    return asked


def _examples_for(row: Row, order: Sequence[Row], shots: int) -> list[Row]:
    """The first training rows of an order that do not give the row's answer away."""
    examples: list[Row] = []
    content, group = content_of(row), row.get(GROUP)
    for candidate in order:
        if len(examples) == shots:
            break
        shares_group = group is not None and candidate.get(GROUP) == group
        if not shares_group and content_of(candidate) != content:
            examples.append(candidate)
    return examples


def _fitting(
    row: Row,
    examples: list[Row],
    style: Style,
    separator: str,
    tokenizer: PreTrainedTokenizerBase,
    room: int | None,
) -> AskedRow:
    """A row with as many of the examples as fit; the row alone is cut later, as in training."""
    while True:
        if style == "chat":
            prompt = _as_chat(row, examples, tokenizer)
        else:
            prompt = _as_text(row, examples, separator)
        tokens = len(tokenizer(prompt, add_special_tokens=style == "text", verbose=False).input_ids)
        if not examples or room is None or tokens <= room:
            return AskedRow(prompt, len(examples), tokens)
        examples = examples[:-1]


def _as_text(row: Row, examples: Sequence[Row], separator: str) -> str:
    shown = [f"{_question_of(example)}{answer_of(example)}{separator}" for example in examples]
    return "".join(shown) + _question_of(row)


def _question_of(row: Row) -> str:
    return str(row.get("eval_prompt", row["prompt"]))


def _as_chat(row: Row, examples: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a chat in which the examples are earlier turns, behind the row's own system."""
    turns = _turns_of(row)
    opening = [turn for turn in turns[:1] if turn["role"] == "system"]
    shown = []
    for example in examples:
        shown += [turn for turn in _turns_of(example) if turn["role"] != "system"]
    whole = {**row, "messages": [*opening, *shown, *turns[len(opening) :]]}
    return prompt_of(whole, "messages", tokenizer)


def _turns_of(row: Row) -> list[Row]:
    """The turns of a chat, or a prompt and its answer as two turns."""
    if "messages" in row:
        # Training weights are no part of what is asked.
        return [{key: turn[key] for key in turn if key != "weight"} for turn in row["messages"]]
    return [
        {"role": "user", "content": _question_of(row).strip()},
        {"role": ASSISTANT, "content": answer_of(row).strip()},
    ]
