"""From rows of each form to token ids: what a model reads, and which tokens count."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lorada.tasks.rows import Form, Row
from lorada.tasks.task import Kind

IGNORED = -100  # the label that transformers' losses leave out
CHUNK = 1000  # rows tokenised at once
MOST_ROLES = 6  # of a conversation, in an error


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded.

    Attributes:
        max_length: tokens a row may have; longer ones are cut.
        loss_on: ``response`` or ``all`` tokens.
        labels: class names by index, for rows with labels.
        joint: whether prompt and response are turned into tokens as one text.
        kind: of the model; an encoder–decoder reads the prompt and gives the response.
        target_length: tokens a response may have. An encoder–decoder's prompt has ``max_length``
            for itself then, a decoder's what this leaves of it, if the row has a ``prompt_end``.
    """

    max_length: int
    loss_on: Literal["response", "all"] = "response"
    labels: tuple[str, ...] = ()
    joint: bool = False
    kind: Kind = "decoder"
    target_length: int | None = None

    @property
    def prompt_room(self) -> int | None:
        """Tokens for a decoder's prompt that has a ``prompt_end``; None for any number.

        Raises:
            ValueError: if there are none.
        """
        if self.target_length is None or self.kind != "decoder":
            return None
        if self.target_length >= self.max_length:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for a prompt beside "
                f"max_target_length={self.target_length}: raise the one or lower the other"
            )
        return self.max_length - self.target_length


@dataclass(frozen=True)
class Encoded:
    """Features of one row, and whether it had to be cut."""

    features: dict[str, Any]
    truncated: bool


EMPTY = Encoded({}, False)  # a row that gives this tokenizer no token to read or to learn


class TurnsRefused(ValueError):
    """A chat template has refused a conversation."""


def encode(
    rows: list[Row], form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Features of rows, in order; None for a row of which cutting leaves nothing to learn from.

    A row in which there was nothing to begin with is ``EMPTY``.

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
    for paired, group in groupby(rows, lambda row: row.get("text_pair") is not None):
        alike, names = list(group), ("text", "text_pair") if paired else ("text",)
        whole = tokenizer(*([row[name] for row in alike] for name in names))
        for row, ids in zip(alike, _by_row(whole), strict=True):
            cut = len(ids["input_ids"]) > options.max_length
            if cut:  # truncation keeps the special tokens at the end
                texts = [row[name] for name in names]
                ids = tokenizer(*texts, truncation=True, max_length=options.max_length)
            if not ids["input_ids"]:
                yield EMPTY
                continue
            scored = "score" in row
            label = float(row["score"]) if scored else options.labels.index(str(row["label"]))
            yield Encoded({**ids, "labels": label}, cut)


def _by_row(batch: Any) -> Iterator[dict[str, list[int]]]:
    """What a tokenizer made of many texts, text by text."""
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch.keys(), values, strict=True))


def _apart(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response, each turned into tokens by itself."""
    end = tokenizer.eos_token or ""
    prompts = [str(row["prompt"]) for row in rows]
    responses = [str(row["response"]) + end for row in rows]
    most = options.target_length
    for row, prompt, response in zip(
        rows,
        tokenizer(prompts)["input_ids"],
        tokenizer(responses, add_special_tokens=False)["input_ids"],
        strict=True,
    ):
        cut = most is not None and len(response) > most
        if "prompt_end" in row and (room := options.prompt_room) and len(prompt) > room:
            prompt, cut = tokenizer(shortened(row, tokenizer, room))["input_ids"], True
        yield _continued(open_ended(prompt, tokenizer), response[:most], options, cut)


def open_ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text that goes on, without the end that some tokenizers put on every text."""
    ends = ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    return ids[:-1] if ends else ids


def _open_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return [open_ended(one, tokenizer) for one in ids]


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _messages(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """A conversation; the last turn with the template's own end of turn is the response."""
    for row in rows:
        prompt = prompt_of(row, "messages", tokenizer)
        whole = _rendered(row["messages"], tokenizer)
        if not whole.startswith(prompt):
            raise TurnsRefused(
                "this tokenizer's chat template renders the conversation differently once the "
                "answer is there; use prompt/response rows instead of messages"
            )
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, whole.removeprefix(prompt))
        ]
        yield _continued(ids[0], ids[1], options)


def shortened(row: Row, tokenizer: PreTrainedTokenizerBase, room: int) -> str:
    """The prompt of a row in ``room`` tokens; what is cut stands before its ``prompt_end``."""
    prompt, end = str(row["prompt"]), str(row["prompt_end"])
    over = len(tokenizer(prompt)["input_ids"]) - room
    if over <= 0:
        return prompt
    ids = tokenizer(prompt.removesuffix(end), add_special_tokens=False)["input_ids"]
    kept: str = tokenizer.decode(ids[: max(0, len(ids) - over)])
    return kept.rstrip("\ufffd") + end  # which stands for half a character


def _continued(
    prompt: list[int], response: list[int], options: EncodeOptions, cut: bool = False
) -> Encoded | None:
    ids = prompt + response
    labels = (prompt if options.loss_on == "all" else [IGNORED] * len(prompt)) + response
    return _cut(ids, labels, options.max_length, cut or len(ids) > options.max_length)


def _cut(ids: list[int], labels: list[int], length: int, truncated: bool) -> Encoded | None:
    ids, labels = ids[:length], labels[:length]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return None if truncated else EMPTY
    features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return Encoded(features, truncated)


def _joint(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response as one text, which ends with the end token where there is room."""
    end = _end(tokenizer)
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    prompts: list[list[int]] = [[]] * len(rows)
    if options.loss_on == "response":
        prompts = _open_ids([str(row["prompt"]) for row in rows], tokenizer)
    for ids, prompt in zip(tokenizer(texts)["input_ids"], prompts, strict=True):
        truncated = len(ids) > options.max_length
        if len(ids) < options.max_length and ids[-1:] != end:
            ids = ids + end
        hidden = min(len(prompt), len(ids))
        yield _cut(ids, [IGNORED] * hidden + ids[hidden:], options.max_length, truncated)


def _pairs(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what a decoder gives, each cut by itself."""
    most, most_given = options.max_length, options.target_length or options.max_length
    prompts = [str(row["prompt"]) for row in rows]
    responses = [str(row["response"]) for row in rows]
    for prompt, response, read, given in zip(
        prompts,
        responses,
        tokenizer(prompts)["input_ids"],
        tokenizer(text_target=responses)["input_ids"],
        strict=True,
    ):
        if not read:
            yield EMPTY
            continue
        cut = len(read) > most or len(given) > most_given
        if len(read) > most:  # truncation keeps the special tokens at the end
            read = tokenizer(prompt, truncation=True, max_length=most)["input_ids"]
        if len(given) > most_given:
            room = {"truncation": True, "max_length": most_given}
            given = tokenizer(text_target=response, **room)["input_ids"]
        if tokenizer.eos_token_id not in given:  # without which the decoder would never stop
            given = given[: most_given - 1] + _end(tokenizer)
        mask = [1] * len(read)
        yield Encoded({"input_ids": read, "attention_mask": mask, "labels": given}, cut)


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """A prompt, which loses its beginning where it is too long, and the texts that may follow."""
    prompts = _open_ids([str(row["prompt"]) for row in rows], tokenizer)
    behind = _candidate_ids(rows, tokenizer)
    for row, prompt in zip(rows, prompts, strict=True):
        candidates = [behind[_last_line(row), text] for text in row["candidates"]]
        room = options.max_length - max(len(ids) for ids in candidates)
        if room < 1 or not prompt or not all(candidates):
            yield None if prompt and all(candidates) else EMPTY
            continue
        features = {
            "prompt": prompt[-room:],
            "candidates": candidates,
            "answer": int(row["answer"]),
            # The Trainer's name for what batches of like length go by.
            "length": len(prompt[-room:]) + max(len(ids) for ids in candidates),
        }
        yield Encoded(features, len(prompt) > room)


def _candidate_ids(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[str, str], list[int]]:
    """Ids of each candidate behind the last line of its prompt.

    Some tokenizers, such as LLaMA's, give a text other tokens when it stands alone. Where prompt
    and candidate share a token, the candidate's own are taken.
    """
    pairs = list(dict.fromkeys((_last_line(r), text) for r in rows for text in r["candidates"]))
    lines = list(dict.fromkeys(line for line, _ in pairs))
    before = dict(zip(lines, _open_ids(lines, tokenizer), strict=True))
    joint = _open_ids([line + text for line, text in pairs], tokenizer)
    alone = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    found = {}
    for (line, text), ids, own in zip(pairs, joint, alone, strict=True):
        start = before[line]
        continues = len(ids) > len(start) and ids[: len(start)] == start
        found[line, text] = ids[len(start) :] if continues else own
    return found


def _last_line(row: Row) -> str:
    return str(row["prompt"]).rsplit("\n", 1)[-1]


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
        for start in range(0, whole if length > 1 else 0, length):  # one token predicts nothing
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


def prompt_of(
    row: Row, form: Form, tokenizer: PreTrainedTokenizerBase, room: int | None = None
) -> str:
    """The text that generation starts from, in ``room`` tokens if it has a ``prompt_end``."""
    if form == "messages":
        return _rendered(row["messages"][:-1], tokenizer, add_generation_prompt=True)
    if room is not None and "prompt_end" in row:
        return shortened(row, tokenizer, room)
    return str(row.get("eval_prompt", row["prompt"]))


def _rendered(turns: list[Row], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Raises:
        TurnsRefused: with the template's own words, as for roles that do not alternate.
    """
    if not tokenizer.chat_template:
        raise TurnsRefused("this tokenizer has no chat template: take rows of prompt and response")
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except ImportError:  # of jinja2
        raise
    except Exception as error:  # a template is a program and has any kind
        roles = ", ".join(turn["role"] for turn in turns[:MOST_ROLES])
        roles += " …" if turns[MOST_ROLES:] else ""
        said = " ".join(str(error).split()) or type(error).__name__
        raise TurnsRefused(f"the chat template refuses the turns {roles}: {said}") from error
