"""Turns rows of each form into token ids and labels, datasets of these, and padded batches.

``labels`` say which tokens a model learns. Lengths are fitted to the model's context; and
``examined`` says of a dry run's rows how many are cut, and shows the first as it is read.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorada.data.chat_template import TurnsRefused, for_template, rendered
from lorada.data.chats import LossOn, chat_tokens, tokens_behind, turn_end, written_answer
from lorada.data.row_lengths import EncodingLog, RowLengths, lengths_of
from lorada.data.shorten import chat_within, prompt_beside, without_middle
from lorada.data.task import Kind
from lorada.data.task_rows import Rows, refuse_kind
from lorada.data.tool_calls import ends_in_calls
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that transformers' losses leave out
CHUNK = 1000  # rows tokenised at once
# What a row of a form has nothing to read or to learn without.
BLANK: dict[Form, tuple[str, ...]] = {
    "text": ("text",), "prompt": ("response",),
    "label": ("text", "text_pair"), "labels": ("text", "text_pair"), "score": ("text", "text_pair"),
}  # fmt: skip


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded."""

    max_length: int  # most tokens of a row; longer ones are cut
    loss_on: LossOn = "response"  # last: a chat's last answer
    labels: tuple[str, ...] = ()  # class names by index, for rows with labels
    joint: bool = False  # whether prompt and response are tokenised as one text
    kind: Kind = "decoder"
    # Most tokens of a response; None if it shares ``max_length`` with the prompt, as it never does
    # in an encoder–decoder.
    target_length: int | None = None
    full: bool = False  # whether the end of joined texts is left out if it fills no window
    # What a row that is too long loses: the middle of what is read, or the end of the whole.
    cut: Literal["middle", "end"] = "end"
    # What the log-probability of a candidate is divided by.
    length_norm: Literal["tokens", "characters", "none"] = "tokens"


class Encoded(NamedTuple):
    """One row as it is encoded."""

    features: dict[str, Any] | None  # None if it has no token to learn
    truncated: bool  # whether it had to be cut
    length: int  # its tokens before that; of an encoder–decoder, those that the encoder reads
    answer_cut: bool = False  # whether a part of what is learned was cut


def encode(
    rows: list[Row], form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Tokenise rows; texts are joined, and what is yielded of them are ``windows``."""
    if form == "text":
        yield from windows(rows, tokenizer, options)
        return
    prompts = _joint_texts if options.joint else _prompts_and_responses
    encode_chunk = {
        "messages": _conversations,
        "choice": _choices,
        "prompt": _sources_and_targets if options.kind == "encoder_decoder" else prompts,
        "label": _classified_texts,
        "labels": _classified_texts,
        "score": _classified_texts,
    }[form]
    for start in range(0, len(rows), CHUNK):
        yield from encode_chunk(rows[start : start + CHUNK], tokenizer, options)


def _classified_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """One text or a pair of texts, with what the head learns of it."""
    names = [name for name in ("text", "text_pair") if name in rows[0]]  # all rows have the same
    batch = tokenizer(*([row[name] for row in rows] for name in names))
    # Truncation leaves special tokens alone, so a length that has no room for more reads nothing.
    special = tokenizer.num_special_tokens_to_add(pair=len(names) > 1)
    has_room = options.max_length > special
    for index, row in enumerate(rows):
        ids: Any = {key: values[index] for key, values in batch.items()}
        length = len(ids["input_ids"])
        cut = length > options.max_length
        if cut and has_room:  # truncation keeps the special tokens at the end
            texts = [row[name] for name in names]
            ids = tokenizer(*texts, truncation=True, max_length=options.max_length)
        right = _right_outputs(row, options.labels)
        reads = bool(ids["input_ids"]) and (has_room or not cut)
        yield Encoded({**ids, "labels": right} if reads else None, cut, length)


def _right_outputs(row: Row, names: tuple[str, ...]) -> float | int | list[float]:
    """What a head learns of a row: a number, the index of a class, or 0 or 1 for each label."""
    if "score" in row:
        return float(row["score"])
    if "labels" in row:
        return [float(name in row["labels"]) for name in names]
    return names.index(str(row["label"]))


def _prompts_and_responses(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Prompt and response, tokenised separately."""
    end = tokenizer.eos_token or ""
    responses = [str(row["response"]) + end for row in rows]
    most = options.target_length
    prompts = _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    written = tokenizer(responses, add_special_tokens=False)["input_ids"]
    for prompt, response in zip(prompts, written, strict=True):
        length, answer = len(prompt) + len(response), response[:most]
        if options.cut == "middle":
            prompt = prompt_beside(prompt, answer, options.max_length)
        learned = [False] * len(prompt) + [True] * len(answer)
        encoded = _sequence(prompt + answer, learned, options, length)
        yield encoded._replace(answer_cut=encoded.answer_cut or len(answer) < len(response))


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
) -> Iterator[Encoded]:
    """Conversations, in which every answer of the assistant counts, or the last alone."""
    most, loss_on = options.max_length, options.loss_on
    for row in rows:
        ids, learned = chat_tokens(row, tokenizer, loss_on=loss_on)
        length = len(ids)
        if length > most and options.cut == "middle":
            ids, learned = chat_within(row, tokenizer, most, loss_on=loss_on)
        yield _sequence(ids, learned, options, length)


def _sequence(ids: list[int], learned: list[bool], options: EncodeOptions, length: int) -> Encoded:
    """Ids, of which some are ``learned``, with their labels, cut at ``max_length``.

    ``length`` is how many there were before any other cut.
    """
    most, every = options.max_length, options.loss_on == "all"
    answer_cut = any(learned[most:])
    ids = ids[:most]
    labels = [
        token if every or counts else IGNORED for token, counts in zip(ids, learned, strict=False)
    ]
    features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    nothing = all(label == IGNORED for label in labels[1:])  # the first token is never predicted
    cut = len(ids) < length
    return Encoded(None if nothing else features, cut, length, answer_cut)


def _joint_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Prompt and response tokenised as one text, with an end token if there is room for it."""
    end = _end(tokenizer)
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    prompts = _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    for ids, prompt in zip(tokenizer(texts)["input_ids"], prompts, strict=True):
        if len(ids) < options.max_length and ids[-1:] != end:
            ids = ids + end
        learned = [index >= len(prompt) for index in range(len(ids))]
        yield _sequence(ids, learned, options, len(ids))


def _sources_and_targets(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what its decoder learns to write, cut separately."""
    most, most_given = options.max_length, options.target_length or options.max_length
    reads = tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    writes = tokenizer(text_target=[str(row["response"]) for row in rows])["input_ids"]
    for row, read, given in zip(rows, reads, writes, strict=True):
        if not read:
            yield Encoded(None, False, 0)
            continue
        length, answer_cut = len(read), len(given) > most_given
        if options.cut == "middle":  # special tokens are at the ends
            read = without_middle(read, most)
        elif length > most:  # truncation keeps the special tokens at the end
            read = tokenizer(str(row["prompt"]), truncation=True, max_length=most)["input_ids"]
        if len(given) > most_given:
            room = {"truncation": True, "max_length": most_given}
            given = tokenizer(text_target=str(row["response"]), **room)["input_ids"]
        if tokenizer.eos_token_id not in given:  # without it the decoder never learns to stop
            given = given[: most_given - 1] + _end(tokenizer)
        mask = [1] * len(read)
        features = {"input_ids": read, "attention_mask": mask, "labels": given}
        yield Encoded(features, length > most or answer_cut, length, answer_cut)


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """A prompt and the texts that may follow it; a long prompt loses its middle or beginning."""
    by, prompts = options.length_norm, _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    for row, prompt, candidates in zip(rows, prompts, _candidates(rows, tokenizer), strict=True):
        longest = max(len(ids) for ids in candidates)
        room, length = options.max_length - longest, len(prompt) + longest
        if room < 1 or not prompt or not all(candidates):
            yield Encoded(None, bool(prompt and all(candidates)), length)
            continue
        read = without_middle(prompt, room) if options.cut == "middle" else prompt[-room:]
        features = {
            "prompt": read,
            "candidates": candidates,
            # As in lm-eval's acc (none) and acc_norm, which counts no space before a candidate.
            "divisors": [
                {"tokens": len(ids), "characters": len(text.strip()) or 1, "none": 1}[by]
                for text, ids in zip(row["candidates"], candidates, strict=True)
            ],
            "answer": int(row["answer"]),
            # The Trainer groups rows into batches of similar length by this name.
            "length": len(read) + longest,
        }
        yield Encoded(features, len(prompt) > room, length)


def _candidates(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Ids of the candidates of each row, each where it follows the last line of the prompt."""
    pairs = [
        (str(row["prompt"]).rpartition("\n")[2], text) for row in rows for text in row["candidates"]
    ]
    found = tokens_behind(pairs, tokenizer)
    yield from (list(islice(found, len(row["candidates"]))) for row in rows)


def windows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Join documents, each with an end token, and cut them into windows of ``max_length`` tokens.

    The last window has the tokens that are left, if something is predicted in it. If only ``full``
    windows are asked for, it is left out, unless there is no other.
    """
    length, left, filled = options.max_length, list[int](), False
    for row in rows:
        left += document_ids(row, tokenizer)
        whole = len(left) - len(left) % length if length > 1 else 0  # one token predicts nothing
        for start in range(0, whole, length):
            filled = True
            yield _sequence(left[start : start + length], [True] * length, options, length)
        del left[:whole]
    if 1 < len(left) < length and not (filled and options.full):
        yield _sequence(left, [True] * len(left), options, len(left))


def document_ids(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a whole text, with an end token."""
    # Not verbose: a document may well be longer than the model's context.
    ids: list[int] = tokenizer(str(row["text"]), verbose=False)["input_ids"]
    return without_end(ids, tokenizer) + _end(tokenizer)


def prompt_of(row: Row, form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that generation starts from."""
    if form == "messages":
        row = for_template(row, tokenizer)
        return rendered(row, len(row["messages"]) - 1, tokenizer, add_generation_prompt=True)
    return str(row.get("eval_prompt", row["prompt"]))


def prompts_of(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that generation starts from, of each row."""
    prompts = []
    for index, row in enumerate(rows.rows):
        with rows.placing(index):
            prompts.append(prompt_of(row, rows.form, tokenizer))
    return prompts


def learned_ends(form: Form, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that rows of this form teach to end an answer with; chats may have their own."""
    return _end(tokenizer) + (turn_end(tokenizer) if form == "messages" else [])


def encode_options(rows: Rows, recipe: Recipe, kind: Kind) -> EncodeOptions:
    """How rows are encoded: as the recipe says, or else as their protocol says."""
    protocol = rows.protocol
    usual = protocol.target_length and min(protocol.target_length, recipe.max_length)
    apart = rows.form == "prompt" and not (protocol.joint and kind == "decoder")
    return EncodeOptions(
        recipe.max_length,
        recipe.loss_on or protocol.loss_on,
        rows.labels,
        joint=protocol.joint,
        kind=kind,
        target_length=(recipe.max_target_length or usual) if apart else None,
        full=bool(protocol.lengths),  # as was published
        cut="middle" if recipe.task == JSONL else "end",  # as was published
        length_norm=recipe.length_norm or "tokens",
    )


def encode_rows(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    answered: bool = False,
    reads: int | None = None,
) -> Dataset:
    """Tokenise rows; a warning says how many were cut or left out. As ``encode_measured`` else."""
    dataset, lengths = encode_measured(
        rows, recipe, tokenizer, kind, answered=answered, reads=reads
    )
    if lengths is not None and lengths.losses:
        logger.warning("%s: of %d rows %s", rows.path, len(rows.rows), lengths.summary)
    return dataset


def encode_measured(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    answered: bool = False,
    reads: int | None = None,
) -> tuple[Dataset, RowLengths | None]:
    """Tokenise rows, and say how long they are; None for texts, which are joined.

    If every row has to be ``answered`` by the model, none may be left out. ``reads`` is how many
    tokens the model reads, if that is known.
    """
    refuse_kind(rows, kind)
    options, log = encode_options(rows, recipe, kind), EncodingLog()
    dataset = dataset_of(features for _, features in encode_each(rows, tokenizer, options, log))
    refuse_lost(rows, options, log, answered=answered)
    assert dataset is not None  # else it was refused
    if rows.form == "text":
        return dataset, None
    return dataset, lengths_of(log, options.max_length, options.target_length, reads)


def refuse_lost(
    rows: Rows, options: EncodeOptions, log: EncodingLog, *, answered: bool = False
) -> None:
    """Refuse rows of which none is left, or not every one if all have to be ``answered``."""
    lost, length = log.dropped + log.empty, options.max_length
    # An encoder–decoder may have to answer held-out rows while it trains.
    if (answered or options.kind == "encoder_decoder") and lost:
        raise ValueError(
            f"{rows.place(min(lost))} cannot be answered: a text of "
            f"it gives this tokenizer no token, or is longer than max_length={length}: "
            "correct it, or raise max_length"
        )
    if len(lost) == len(log.lengths):
        raise ValueError(
            f"{rows.path} has no row to learn from: every one gives this tokenizer no token to "
            f"read, or none to learn within max_length={length}: raise it, or correct the rows"
        )


def encode_each(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions, log: EncodingLog
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The index of each row that has something to learn, and its features; of texts, windows."""
    index, total = 0, None if rows.form == "text" else len(rows.rows)
    each = encode(rows.rows, rows.form, tokenizer, options)
    try:
        for encoded in progress_bar(each, f"Encoding {rows.path}", total=total):
            log.lengths.append(encoded.length)
            if encoded.features is None:
                (log.dropped if encoded.truncated else log.empty).append(index)
            else:
                if encoded.truncated:
                    log.cut.append(index)
                if encoded.answer_cut:
                    log.answers_cut.append(index)
                yield index, encoded.features
            index += 1
    except TurnsRefused as error:
        raise ValueError(f"{rows.place(index)}: {error}") from error


def written_calls(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows, in which a chat that ends in calls of tools has the text that a model writes."""
    if not any(map(ends_in_calls, rows.rows)):
        return rows
    written = []
    for index, row in enumerate(rows.rows):
        if ends_in_calls(row):
            with rows.placing(index):
                row = {**row, "eval_response": written_answer(row, tokenizer)}
        written.append(row)
    return replace(rows, rows=written)


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


def collator(form: Form, tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """The collator for rows of a form: it pads a batch to its longest row, labels included.

    An encoder–decoder is passed as ``model``: its decoder's input is made from the labels here,
    because label smoothing takes the labels away before the forward.
    """
    if form in HEADED:
        return DataCollatorWithPadding(tokenizer)
    if form == "choice":
        return partial(_choice_batch, pad=tokenizer.pad_token_id)
    # No other model goes along to the processes that make batches.
    writer = model if model is not None and model.config.is_encoder_decoder else None
    return DataCollatorForSeq2Seq(tokenizer, writer, label_pad_token_id=IGNORED)


def _choice_batch(features: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of one sequence per candidate of each row: left pads, prompt, candidate.

    ``labels`` has the tokens of the candidates, ``divisors`` what the log-probability of each is
    divided by, ``groups`` the number of candidates of each row, and ``answers`` the index of the
    right one.
    """
    pairs = [(row["prompt"], ids) for row in features for ids in row["candidates"]]
    read = [torch.tensor(prompt + ids) for prompt, ids in pairs]
    learned = [torch.tensor([IGNORED] * len(prompt) + ids) for prompt, ids in pairs]
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    return {
        "input_ids": padded(read, padding_value=pad),
        "attention_mask": padded([torch.ones_like(ids) for ids in read]),
        "labels": padded(learned, padding_value=IGNORED),
        "divisors": torch.tensor([x for row in features for x in row["divisors"]]),
        "groups": torch.tensor([len(row["candidates"]) for row in features]),
        "answers": torch.tensor([row["answer"] for row in features]),
    }


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


@dataclass(frozen=True)
class Examined:
    """What a dry run says of rows."""

    lengths: RowLengths | None  # None for texts, which are joined
    empty: int  # rows that have nothing to read or to learn
    copies: int  # rows that are copies of earlier ones
    first: dict[str, Any] | None  # the first row that is learned, as ``_first_row`` makes it


def examined(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    reads: int | None = None,
) -> Examined:
    """Encode rows as a training does, and refuse what it refuses; nothing is kept of them.

    ``reads`` is how many tokens the model reads, if that is known.
    """
    options, log, first = encode_options(rows, recipe, kind), EncodingLog(), None
    for index, features in encode_each(rows, tokenizer, options, log):
        first = first or _first_row(rows, index, features, tokenizer, kind)
    refuse_lost(rows, options, log)
    lengths = lengths_of(log, options.max_length, options.target_length, reads)
    empty = lengths.empty
    # Such rows are encoded: texts are joined, a head reads [CLS], and an answer has its end.
    if names := BLANK.get(rows.form):
        empty = sum(not "".join(r.get(n, "") for n in names).strip() for r in rows.rows)
    different = {json.dumps(row, sort_keys=True) for row in rows.rows}
    copies = len(rows.rows) - len(different)
    return Examined(None if rows.form == "text" else lengths, empty, copies, first)


def _first_row(
    rows: Rows, index: int, features: dict[str, Any], tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> dict[str, Any]:
    """A row as it is encoded: its stretches of text, each with whether its tokens count."""
    learned: Any = None  # by a head
    if rows.form == "choice":
        right = features["candidates"][features["answer"]]
        pieces = [(features["prompt"], False), (right, True)]
    elif rows.form in HEADED:
        pieces, learned = [(features["input_ids"], False)], features["labels"]
    elif kind == "encoder_decoder":
        pieces = [(features["input_ids"], False), (features["labels"], True)]
    else:
        counts = [label != IGNORED for label in features["labels"]]
        counts[0] = False  # the first token is never predicted
        marked = groupby(zip(features["input_ids"], counts, strict=True), itemgetter(1))
        pieces = [([token for token, _ in group], one) for one, group in marked]
    return {
        "row": None if rows.form == "text" else rows.number(index),  # None for a window
        "tokens": sum(len(ids) for ids, _ in pieces),
        "counted": sum(len(ids) for ids, one in pieces if one),
        "pieces": [(tokenizer.decode(ids), one) for ids, one in pieces],
        "learned": _as_named(learned, rows),
    }


def _as_named(learned: Any, rows: Rows) -> Any:
    """What a head learns of a row, by the names of classes and labels."""
    if rows.form == "label":
        return rows.labels[learned]
    if rows.form == "labels":
        return [name for name, right in zip(rows.labels, learned, strict=True) if right]
    return learned
