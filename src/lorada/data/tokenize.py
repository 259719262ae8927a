"""Turns rows of each form into token ids, and into labels that say which tokens a model learns.

A chat is what its template writes; of it every answer of the assistant is learned, with its end:

    answer k = what the text up to turn k has beyond the turns before it and an answer's header

A template that marks what a model writes (``{% generation %}``) says itself which tokens these are.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice, pairwise, repeat
from textwrap import shorten
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lorada.data.task import Kind
from lorada.support.row_sources import Form, Row

IGNORED = -100  # the label that transformers' losses leave out
CHUNK = 1000  # rows tokenised at once


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded.

    Attributes:
        max_length: most tokens of a row; longer ones are cut.
        loss_on: which tokens count in the loss: of the ``response`` (in a chat of every answer), of
            the ``last`` answer of a chat, or ``all``.
        labels: class names by index, for rows with labels.
        joint: whether prompt and response are tokenised as one text.
        kind: kind of the model; an encoder–decoder reads the prompt and writes the response.
        full: whether the end of joined texts is left out if it fills no window.
        apart: whether each text is cut into windows by itself, and not joined with others.
        length_norm: what the log-probability of a candidate is divided by.
        target_length: most tokens of a response; None if it shares ``max_length`` with the prompt.
            With it, a decoder's prompt gets the rest of ``max_length`` if its row has a
            ``prompt_end`` to cut before; an encoder–decoder's prompt always gets all of it.
    """

    max_length: int
    loss_on: Literal["response", "last", "all"] = "response"
    labels: tuple[str, ...] = ()
    joint: bool = False
    kind: Kind = "decoder"
    target_length: int | None = None
    full: bool = False
    apart: bool = False
    length_norm: Literal["tokens", "characters", "none"] = "tokens"

    @property
    def prompt_room(self) -> int | None:
        """Most tokens of a decoder's prompt that has a ``prompt_end``; None for no such limit."""
        if self.target_length is None or self.kind != "decoder":
            return None
        if self.target_length >= self.max_length:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for a prompt beside "
                f"max_target_length={self.target_length}: raise the first or lower the second"
            )
        return self.max_length - self.target_length


@dataclass(frozen=True)
class Encoded:
    """Features of one row, and whether it had to be cut."""

    features: dict[str, Any]
    truncated: bool


# For a row in which this tokenizer finds no token to read, or none to learn.
EMPTY = Encoded({}, False)


def encode(
    rows: list[Row], form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Tokenise rows of any form except ``text``, which ``windows`` tokenises.

    Yields ``EMPTY`` for a row without a token to learn, and None if cutting it left none.
    """
    if not rows:
        return
    encode_chunk = {
        "messages": _conversations,
        "choice": _choices,
        "prompt": _joint_texts if options.joint else _prompts_and_responses,
        "label": _classified_texts,
        "score": _classified_texts,
    }[form]
    if options.kind == "encoder_decoder" and form == "prompt":
        encode_chunk = _sources_and_targets
    for start in range(0, len(rows), CHUNK):
        yield from encode_chunk(rows[start : start + CHUNK], tokenizer, options)


def _classified_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """One text or a pair of texts, with the index of a class or a number."""
    for paired, group in groupby(rows, lambda row: row.get("text_pair") is not None):
        alike, names = list(group), ("text", "text_pair") if paired else ("text",)
        batch = tokenizer(*([row[name] for row in alike] for name in names))
        for row, *features in zip(alike, *batch.values(), strict=True):
            ids: Any = dict(zip(batch.keys(), features, strict=True))
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


def _prompts_and_responses(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response, tokenised separately."""
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
            prompt, cut = tokenizer(shorten_prompt(row, tokenizer, room))["input_ids"], True
        prompt = without_end(prompt, tokenizer)
        learned = chain(repeat(False, len(prompt)), repeat(True))
        yield _sequence(prompt + response[:most], learned, options, cut)


def without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text without the end token that some tokenizers add to every text."""
    ends = ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]
    return ids[:-1] if ends else ids


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds an end token to every text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return without_end(ids, tokenizer) != ids


def _prompt_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return [without_end(one, tokenizer) for one in ids]


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _conversations(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Conversations, in which every answer of the assistant counts, or the last alone."""
    for row in rows:
        ids, learned = chat_tokens(row, tokenizer, last=options.loss_on == "last")
        yield _sequence(ids, learned, options)


def shorten_prompt(row: Row, tokenizer: PreTrainedTokenizerBase, room: int) -> str:
    """The prompt of a row in at most ``room`` tokens; the text before its ``prompt_end`` is cut."""
    prompt, end = str(row["prompt"]), str(row["prompt_end"])
    over = len(tokenizer(prompt)["input_ids"]) - room
    if over <= 0:
        return prompt
    ids = tokenizer(prompt.removesuffix(end), add_special_tokens=False)["input_ids"]
    kept: str = tokenizer.decode(ids[: max(0, len(ids) - over)])
    return kept.rstrip("\ufffd") + end  # a character that was cut in half decodes to this


def _sequence(
    ids: list[int], learned: Iterable[bool], options: EncodeOptions, cut: bool = False
) -> Encoded | None:
    """Ids, of which some are ``learned``, with their labels, cut to ``max_length``."""
    cut = cut or len(ids) > options.max_length
    ids = ids[: options.max_length]
    every = options.loss_on == "all"
    labels = [
        one if every or counts else IGNORED for one, counts in zip(ids, learned, strict=False)
    ]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return None if cut else EMPTY
    return Encoded({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut)


def _joint_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """Prompt and response tokenised as one text, with an end token if there is room for it."""
    end = _end(tokenizer)
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    prompts = _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    for ids, prompt in zip(tokenizer(texts)["input_ids"], prompts, strict=True):
        if len(ids) < options.max_length and ids[-1:] != end:
            ids = ids + end
        yield _sequence(ids, chain(repeat(False, len(prompt)), repeat(True)), options)


def _sources_and_targets(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what its decoder learns to write, cut separately."""
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
        if tokenizer.eos_token_id not in given:  # without it the decoder never learns to stop
            given = given[: most_given - 1] + _end(tokenizer)
        mask = [1] * len(read)
        yield Encoded({"input_ids": read, "attention_mask": mask, "labels": given}, cut)


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded | None]:
    """A prompt and the texts that may follow it; a long prompt loses its beginning."""
    by, prompts = options.length_norm, _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    for row, prompt, candidates in zip(rows, prompts, _candidates(rows, tokenizer), strict=True):
        room = options.max_length - max(len(ids) for ids in candidates)
        if room < 1 or not prompt or not all(candidates):
            yield None if prompt and all(candidates) else EMPTY
            continue
        features = {
            "prompt": prompt[-room:],
            "candidates": candidates,
            # As in lm-eval's acc (none) and acc_norm, which counts no space before a candidate.
            "divisors": [
                {"tokens": len(ids), "characters": len(text.strip()) or 1, "none": 1}[by]
                for text, ids in zip(row["candidates"], candidates, strict=True)
            ],
            "answer": int(row["answer"]),
            # The Trainer groups rows into batches of similar length by this name.
            "length": len(prompt[-room:]) + max(len(ids) for ids in candidates),
        }
        yield Encoded(features, len(prompt) > room)


def _candidates(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Ids of the candidates of each row, each where it follows the last line of the prompt."""
    lines = (str(row["prompt"]).rsplit("\n", 1)[-1] for row in rows)
    pairs = [
        (line, text) for line, row in zip(lines, rows, strict=True) for text in row["candidates"]
    ]
    found = continuations(pairs, tokenizer)
    yield from (list(islice(found, len(row["candidates"]))) for row in rows)


def windows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Join documents, each with an end token, and cut them into windows of ``max_length`` tokens.

    The last window has the tokens that are left, if something is predicted in it. If only ``full``
    windows are asked for, it is left out, unless there is no other.
    """
    if options.apart:
        for row in rows:
            yield from windows([row], tokenizer, replace(options, apart=False))
        return
    length, left, filled = options.max_length, list[int](), False
    for row in rows:
        left += document_ids(row, tokenizer)
        whole = len(left) - len(left) % length if length > 1 else 0  # one token predicts nothing
        for start in range(0, whole, length):
            filled = True
            yield _window(left[start : start + length])
        del left[:whole]
    if 1 < len(left) < length and not (filled and options.full):
        yield _window(left)


def document_ids(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a whole text, with an end token."""
    # Not verbose: a document may well be longer than the model's context.
    ids: list[int] = tokenizer(str(row["text"]), verbose=False)["input_ids"]
    return without_end(ids, tokenizer) + _end(tokenizer)


def _window(ids: list[int]) -> Encoded:
    return Encoded({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}, False)


def prompt_of(
    row: Row, form: Form, tokenizer: PreTrainedTokenizerBase, room: int | None = None
) -> str:
    """The text that generation starts from, cut to ``room`` tokens if it has a ``prompt_end``."""
    if form == "messages":
        return rendered(row, len(row["messages"]) - 1, tokenizer, add_generation_prompt=True)
    if room is not None and "prompt_end" in row:
        return shorten_prompt(row, tokenizer, room)
    return str(row.get("eval_prompt", row["prompt"]))


def learned_ends(form: Form, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that rows of this form teach to end an answer with; chats may have their own."""
    return _end(tokenizer) + (turn_end(tokenizer) if form == "messages" else [])


ASSISTANT = "assistant"
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
MOST = 60  # characters of a conversation's roles that an error shows


class TurnsRefused(ValueError):
    """A tokenizer without a chat template, or one that refuses a conversation."""


def chat_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, last: bool
) -> tuple[list[int], list[bool]]:
    """The token ids of a chat, and whether each is learned; if ``last``, the last answer alone."""
    known = tokenizer.is_fast and tokenizer.chat_template  # a slow one has no offsets
    if not last and known and MARK.search(tokenizer.get_chat_template(tools=row.get("tools"))):
        return _marked(row, tokenizer)
    pieces = _pieces(row, tokenizer, last=last)
    ids = list(continuations([("", pieces[0]), *pairwise(pieces)], tokenizer))
    learned = (repeat(number % 2 == 1, len(piece)) for number, piece in enumerate(ids))
    return list(chain(*ids)), list(chain(*learned))


def rendered(row: Row, count: int, tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """The first ``count`` turns of a chat as the template writes them."""
    return str(_applied(row, count, tokenizer, tokenize=False, **options))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that the template ends an answer with, if it does."""
    turns = [{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": "reply"}]
    try:
        after = rendered({"messages": turns}, 2, tokenizer).rpartition("reply")[2]
    except TurnsRefused:  # no template, or one for other turns than these
        return []
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return [one for one in ids if one in special][:1]


def continuations(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """The token ids of the second text of each pair, where it follows the first.

    A tokenizer may split a text differently when it stands alone. If a token spans both, the second
    is tokenised alone, as where it is generated.
    """
    texts = [*(a for a, _ in pairs), *(b for _, b in pairs), *(a + b for a, b in pairs)]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(pairs)
    for before, own, both in zip(
        ids[:count], ids[count : 2 * count], ids[2 * count :], strict=True
    ):
        continues = len(both) > len(before) and both[: len(before)] == before
        yield both[len(before) :] if continues else own


def _marked(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens between the template's marks, and the end token right behind them."""
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    found = _applied(row, len(row["messages"]), tokenizer, **options)
    ids, learned = list(found["input_ids"]), list(map(bool, found["assistant_masks"]))
    ends = {tokenizer.eos_token_id, *turn_end(tokenizer)}
    for i in range(1, len(ids)):
        learned[i] = learned[i] or (learned[i - 1] and ids[i] in ends)
    return ids, learned


def _pieces(row: Row, tokenizer: PreTrainedTokenizerBase, *, last: bool) -> list[str]:
    """The text of a chat: what is read, an answer, what is read, another answer, and so on."""
    turns = row["messages"]
    # An opening by the assistant answers nothing, and no template has a prompt for it: it is read.
    answers = [k for k in range(1, len(turns)) if turns[k]["role"] == ASSISTANT]
    whole, cuts = rendered(row, len(turns), tokenizer), [0]
    for k in [len(turns) - 1] if last else answers:
        before = rendered(row, k, tokenizer, add_generation_prompt=True)
        after = whole if k == len(turns) - 1 else rendered(row, k + 1, tokenizer)
        if not whole.startswith(after):  # some write the end token behind a whole chat
            after = after.removesuffix(tokenizer.eos_token or "")
        if not (whole.startswith(after) and after.startswith(before)):
            raise TurnsRefused(
                f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders turns "
                "differently once later ones are there, as those do that drop earlier thinking: "
                "loss_on=last learns the last turn alone; else take rows of prompt and response"
            )
        cuts += [len(before), len(after)]
    return [whole[start:stop] for start, stop in pairwise(cuts)]


def _applied(row: Row, count: int, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """What the chat template makes of the first ``count`` turns; it may refuse them."""
    if not tokenizer.chat_template:
        raise TurnsRefused("this tokenizer has no chat template: take rows of prompt and response")
    turns = row["messages"][:count]
    try:
        return tokenizer.apply_chat_template(turns, tools=row.get("tools"), **options)
    except ImportError:  # jinja2 is missing
        raise
    except Exception as error:  # a template is a program, which may raise anything
        roles = shorten(", ".join(turn["role"] for turn in turns), MOST, placeholder=" …")
        said = " ".join(str(error).split()) or type(error).__name__
        raise TurnsRefused(f"the chat template refuses the turns {roles}: {said}") from error
