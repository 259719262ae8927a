"""From rows of each form to token ids: what a model reads, and which tokens count."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lorada.tasks.rows import Form, Row
from lorada.tasks.task import Kind

IGNORED = -100  # the label that transformers' losses leave out
CHUNK = 1000  # rows tokenised at once


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded.

    Attributes:
        max_length: tokens a row may have; longer ones are cut.
        loss_on: ``response`` or ``all`` tokens.
        labels: class names by index, for rows with labels.
        joint: whether prompt and response are turned into tokens as one text.
        kind: of the model; an encoder–decoder reads the prompt and gives the response.
    """

    max_length: int
    loss_on: Literal["response", "all"] = "response"
    labels: tuple[str, ...] = ()
    joint: bool = False
    kind: Kind = "decoder"


@dataclass(frozen=True)
class Encoded:
    """Features of one row, and whether it had to be cut."""

    features: dict[str, Any]
    truncated: bool


def encode(
    rows: list[Row], form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Features of rows, in order; None for a row of which cutting leaves nothing to learn from.

    Rows of the form ``text`` become windows of ``max_length`` tokens instead (``windows``).
    """
    how = {
        "messages": _messages,
        "choice": _choices,
        "prompt": _joint if options.joint else _apart,
        "label": _texts,
        "score": _texts,
    }[form]
    if options.kind == "encoder_decoder" and form == "prompt":
        how = _pairs
    for start in range(0, len(rows), CHUNK):
        yield from how(rows[start : start + CHUNK], tokenizer, options)


def _texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """One text or a pair, with a class index or a number."""
    for row in rows:
        texts = [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
        ids = tokenizer(*texts)
        cut = len(ids["input_ids"]) > options.max_length
        if cut:  # truncation keeps the special tokens at the end
            ids = tokenizer(*texts, truncation=True, max_length=options.max_length)
        label = float(row["score"]) if "score" in row else options.labels.index(str(row["label"]))
        yield Encoded({**ids, "labels": label}, cut)


def _apart(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response, each turned into tokens by itself."""
    end = tokenizer.eos_token or ""
    prompts = [str(row["prompt"]) for row in rows]
    responses = [str(row["response"]) + end for row in rows]
    for prompt, response in zip(
        tokenizer(prompts)["input_ids"],
        tokenizer(responses, add_special_tokens=False)["input_ids"],
        strict=True,
    ):
        yield _continued(open_ended(prompt, tokenizer), response, options)


def open_ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text that goes on, without the end that some tokenizers put on every text."""
    ends = ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    return ids[:-1] if ends else ids


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _messages(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """A conversation; the last turn with the template's own end of turn is the response."""
    for row in rows:
        prompt = prompt_of(row, "messages", tokenizer)
        whole = str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        if not whole.startswith(prompt):
            raise ValueError(
                "this tokenizer's chat template renders the conversation differently once the "
                "answer is there; use prompt/response rows instead of messages"
            )
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, whole.removeprefix(prompt))
        ]
        yield _continued(ids[0], ids[1], options)


def _continued(prompt: list[int], response: list[int], options: EncodeOptions) -> Encoded | None:
    ids = prompt + response
    labels = (prompt if options.loss_on == "all" else [IGNORED] * len(prompt)) + response
    return _cut(ids, labels, options.max_length, len(ids) > options.max_length)


def _cut(ids: list[int], labels: list[int], length: int, truncated: bool) -> Encoded | None:
    ids, labels = ids[:length], labels[:length]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return None
    features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return Encoded(features, truncated)


def _joint(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response as one text, which ends with the end token where there is room."""
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    prompts: list[list[int]] = [[]] * len(rows)
    if options.loss_on == "response":
        prompts = tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    for ids, prompt in zip(tokenizer(texts)["input_ids"], prompts, strict=True):
        truncated = len(ids) > options.max_length
        if len(ids) < options.max_length and ids[-1:] != _end(tokenizer):
            ids = ids + _end(tokenizer)
        hidden = min(len(open_ended(prompt, tokenizer)), len(ids))
        yield _cut(ids, [IGNORED] * hidden + ids[hidden:], options.max_length, truncated)


def _pairs(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what a decoder gives, each cut by itself."""
    for row in rows:
        read = tokenizer(str(row["prompt"]))
        gives = tokenizer(text_target=str(row["response"]))["input_ids"]
        cut = max(len(read["input_ids"]), len(gives)) > options.max_length
        if cut:
            room = {"truncation": True, "max_length": options.max_length}
            read = tokenizer(str(row["prompt"]), **room)
            gives = tokenizer(text_target=str(row["response"]), **room)["input_ids"]
        ids = {key: read[key] for key in ("input_ids", "attention_mask")}
        yield Encoded({**ids, "labels": gives}, cut)


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """A prompt, which loses its beginning where it is too long, and the texts that may follow."""
    for row in rows:
        prompt = open_ended(tokenizer(str(row["prompt"]))["input_ids"], tokenizer)
        candidates = tokenizer(row["candidates"], add_special_tokens=False)["input_ids"]
        room = options.max_length - max(len(ids) for ids in candidates)
        if room < 1 or not all(candidates):
            yield None
            continue
        features = {
            "prompt": prompt[-room:],
            "candidates": candidates,
            "answer": int(row["answer"]),
        }
        yield Encoded(features, len(prompt) > room)


def windows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Documents one after another, each with an end token, cut into windows of ``max_length``.

    What is left over at the end fills no window and is left out, unless it is all there is.
    """
    length, filled = options.max_length, False
    buffer: list[int] = []
    for row in rows:
        buffer += document(row, tokenizer)
        whole = len(buffer) - len(buffer) % length
        for start in range(0, whole, length):
            filled = True
            yield _window(buffer[start : start + length])
        del buffer[:whole]
    if not filled and len(buffer) > 1:
        yield _window(buffer)


def document(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a whole text, which ends with the end token."""
    # Not verbose: that a document is longer than the model's context is no news here.
    ids: list[int] = tokenizer(str(row["text"]), verbose=False)["input_ids"]
    return open_ended(ids, tokenizer) + _end(tokenizer)


def _window(ids: list[int]) -> Encoded:
    return Encoded({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}, False)


def prompt_of(row: Row, form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that generation starts from."""
    if form == "messages":
        return str(
            tokenizer.apply_chat_template(
                row["messages"][:-1], tokenize=False, add_generation_prompt=True
            )
        )
    return str(row.get("eval_prompt", row["prompt"]))
