"""The task ``jsonl``: fine-tune on your own file of prompts, chats or labelled texts.

Three forms, told apart by their fields: ``prompt``/``response``, ``messages`` (through the
tokenizer's chat template, the last assistant turn is the response), and ``text``/``label``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.tasks.rows import Form, Row

IGNORED = -100  # the label that transformers' losses leave out


@dataclass(frozen=True)
class Task:
    """What a task knows: how a row becomes input ids and labels, and how outputs are scored.

    Attributes:
        summary: one line for ``lorada tasks``.
        encode: (row, form, tokenizer, options) → features.
        prompt_of: the text that generation starts from.
        answer_of: the text that generation should give.
        score: (outputs, answers) → metrics.
    """

    summary: str
    encode: Callable[[Row, Form, PreTrainedTokenizerBase, "EncodeOptions"], "Encoded | None"]
    prompt_of: Callable[[Row, Form, PreTrainedTokenizerBase], str]
    answer_of: Callable[[Row, Form], str]
    score: Callable[[list[str], list[str]], dict[str, float]]


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded.

    Attributes:
        max_length: tokens a row may have; longer ones are cut.
        loss_on: ``response`` or ``all`` tokens.
        labels: class names by index, for ``text``/``label`` rows.
    """

    max_length: int
    loss_on: str = "response"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Features of one row, and whether it had to be cut."""

    features: dict[str, Any]
    truncated: bool


def encode(
    row: Row, form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Encoded | None:
    """Input ids and labels of a row; None if cutting leaves no token to learn from."""
    if form == "label":
        ids = tokenizer(row["text"])
        cut = len(ids["input_ids"]) > options.max_length
        if cut:  # truncation keeps the special tokens at the end
            ids = tokenizer(row["text"], truncation=True, max_length=options.max_length)
        return Encoded({**ids, "labels": options.labels.index(str(row["label"]))}, cut)
    text = prompt_of(row, form, tokenizer)
    prompt = tokenizer(text, add_special_tokens=form == "prompt")["input_ids"]
    ends = prompt[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    if form == "prompt" and ends:  # a tokenizer that closes every text
        prompt = prompt[:-1]
    response = _response_of(row, form, text, tokenizer)
    response = tokenizer(response, add_special_tokens=False)["input_ids"]
    ids = prompt + response
    labels = (prompt if options.loss_on == "all" else [IGNORED] * len(prompt)) + response
    truncated = len(ids) > options.max_length
    ids, labels = ids[: options.max_length], labels[: options.max_length]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return None
    features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return Encoded(features, truncated)


def prompt_of(row: Row, form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text before the response."""
    if form == "messages":
        return str(
            tokenizer.apply_chat_template(
                row["messages"][:-1], tokenize=False, add_generation_prompt=True
            )
        )
    return str(row["prompt" if form == "prompt" else "text"])


def answer_of(row: Row, form: Form) -> str:
    """The text that generation should give."""
    if form == "messages":
        return str(row["messages"][-1]["content"])
    return str(row["response" if form == "prompt" else "label"])


def _response_of(row: Row, form: Form, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The response with what ends it: the template's own end of turn, or the end-of-text token."""
    if form == "messages":
        whole = str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        if not whole.startswith(prompt):
            raise ValueError(
                "this tokenizer's chat template renders the conversation differently once the "
                "answer is there; use prompt/response rows instead of messages"
            )
        return whole.removeprefix(prompt)
    return answer_of(row, form) + (tokenizer.eos_token or "")


def score(outputs: list[str], answers: list[str]) -> dict[str, float]:
    """Percent of outputs that equal the answer, white space at the ends aside."""
    right = sum(o.strip() == a.strip() for o, a in zip(outputs, answers, strict=True))
    return {"exact_match": 100.0 * right / len(answers)}


TASK = Task(
    summary="your own file: prompt/response, messages, or text/label; JSON Lines or CSV",
    encode=encode,
    prompt_of=prompt_of,
    answer_of=answer_of,
    score=score,
)
