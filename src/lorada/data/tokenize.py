"""Turns rows of each form into token ids and labels, datasets of these, and padded batches.

``labels`` say which tokens a model learns. Lengths are fitted to the model's context; and
``lost_and_first`` says of a dry run's rows how many are cut, and shows the first as it is read.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice, repeat
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, PreTrainedTokenizerBase

from lorada.data.chats import TurnsRefused, chat_tokens, continuations, rendered, turn_end
from lorada.data.task import Kind
from lorada.data.task_rows import Rows, refuse_kind
from lorada.runs.recipe import Recipe
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that transformers' losses leave out
CHUNK = 1000  # rows tokenised at once
# What a row of a form has nothing to read or to learn without.
BLANK: dict[Form, tuple[str, ...]] = {
    "text": ("text",), "prompt": ("response",),
    "label": ("text", "text_pair"), "score": ("text", "text_pair"),
}  # fmt: skip
# Indices of rows that were ``cut`` to length, that were ``dropped`` because nothing to learn was
# left of them, or that were ``empty`` from the beginning.
Lost = defaultdict[str, list[int]]


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded."""

    max_length: int  # most tokens of a row; longer ones are cut
    loss_on: Literal["response", "last", "all"] = "response"  # last: a chat's last answer
    labels: tuple[str, ...] = ()  # class names by index, for rows with labels
    joint: bool = False  # whether prompt and response are tokenised as one text
    kind: Kind = "decoder"
    # Most tokens of a response; None if it shares ``max_length`` with the prompt, as it never does
    # in an encoder–decoder.
    target_length: int | None = None
    full: bool = False  # whether the end of joined texts is left out if it fills no window
    # What the log-probability of a candidate is divided by.
    length_norm: Literal["tokens", "characters", "none"] = "tokens"


class Encoded(NamedTuple):
    """Features of one row, None if it has no token to learn, and whether it had to be cut."""

    features: dict[str, Any] | None
    truncated: bool


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
        "score": _classified_texts,
    }[form]
    for start in range(0, len(rows), CHUNK):
        yield from encode_chunk(rows[start : start + CHUNK], tokenizer, options)


def _classified_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """One text or a pair of texts, with the index of a class or a number."""
    names = [name for name in ("text", "text_pair") if name in rows[0]]  # all rows have the same
    batch = tokenizer(*([row[name] for row in rows] for name in names))
    for index, row in enumerate(rows):
        ids: Any = {key: values[index] for key, values in batch.items()}
        cut = len(ids["input_ids"]) > options.max_length
        if cut:  # truncation keeps the special tokens at the end
            texts = [row[name] for name in names]
            ids = tokenizer(*texts, truncation=True, max_length=options.max_length)
        scored = "score" in row
        label = float(row["score"]) if scored else options.labels.index(str(row["label"]))
        yield Encoded({**ids, "labels": label} if ids["input_ids"] else None, cut)


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
        cut = most is not None and len(response) > most
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
) -> Iterator[Encoded]:
    """Conversations, in which every answer of the assistant counts, or the last alone."""
    for row in rows:
        ids, learned = chat_tokens(row, tokenizer, last=options.loss_on == "last")
        yield _sequence(ids, learned, options)


def _sequence(
    ids: list[int], learned: Iterable[bool], options: EncodeOptions, cut: bool = False
) -> Encoded:
    """Ids, of which some are ``learned``, with their labels, cut to ``max_length``."""
    cut = cut or len(ids) > options.max_length
    ids = ids[: options.max_length]
    every = options.loss_on == "all"
    labels = [
        one if every or counts else IGNORED for one, counts in zip(ids, learned, strict=False)
    ]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return Encoded(None, cut)
    return Encoded({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut)


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
        yield _sequence(ids, chain(repeat(False, len(prompt)), repeat(True)), options)


def _sources_and_targets(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what its decoder learns to write, cut separately."""
    most, most_given = options.max_length, options.target_length or options.max_length
    reads = tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    writes = tokenizer(text_target=[str(row["response"]) for row in rows])["input_ids"]
    for row, read, given in zip(rows, reads, writes, strict=True):
        if not read:
            yield Encoded(None, False)
            continue
        cut = len(read) > most or len(given) > most_given
        if len(read) > most:  # truncation keeps the special tokens at the end
            read = tokenizer(str(row["prompt"]), truncation=True, max_length=most)["input_ids"]
        if len(given) > most_given:
            room = {"truncation": True, "max_length": most_given}
            given = tokenizer(text_target=str(row["response"]), **room)["input_ids"]
        if tokenizer.eos_token_id not in given:  # without it the decoder never learns to stop
            given = given[: most_given - 1] + _end(tokenizer)
        mask = [1] * len(read)
        yield Encoded({"input_ids": read, "attention_mask": mask, "labels": given}, cut)


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """A prompt and the texts that may follow it; a long prompt loses its beginning."""
    by, prompts = options.length_norm, _prompt_ids([str(row["prompt"]) for row in rows], tokenizer)
    for row, prompt, candidates in zip(rows, prompts, _candidates(rows, tokenizer), strict=True):
        room = options.max_length - max(len(ids) for ids in candidates)
        if room < 1 or not prompt or not all(candidates):
            yield Encoded(None, bool(prompt and all(candidates)))
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
    pairs = [
        (str(row["prompt"]).rpartition("\n")[2], text) for row in rows for text in row["candidates"]
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
    length, left, filled = options.max_length, list[int](), False
    for row in rows:
        left += document_ids(row, tokenizer)
        whole = len(left) - len(left) % length if length > 1 else 0  # one token predicts nothing
        for start in range(0, whole, length):
            filled = True
            yield _sequence(left[start : start + length], repeat(True), options)
        del left[:whole]
    if 1 < len(left) < length and not (filled and options.full):
        yield _sequence(left, repeat(True), options)


def document_ids(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a whole text, with an end token."""
    # Not verbose: a document may well be longer than the model's context.
    ids: list[int] = tokenizer(str(row["text"]), verbose=False)["input_ids"]
    return without_end(ids, tokenizer) + _end(tokenizer)


def prompt_of(row: Row, form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that generation starts from."""
    if form == "messages":
        return rendered(row, len(row["messages"]) - 1, tokenizer, add_generation_prompt=True)
    return str(row.get("eval_prompt", row["prompt"]))


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
        length_norm=recipe.length_norm or "tokens",
    )


def encode_rows(
    rows: Rows,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    answered: bool = False,
) -> Dataset:
    """Tokenise rows; a warning says how many were cut or left out.

    If every row has to be ``answered`` by the model, none may be left out.
    """
    refuse_kind(rows, kind)
    options = encode_options(rows, recipe, kind)
    length, target = options.max_length, options.target_length
    lost = Lost(list)
    dataset = dataset_of(one for _, one in encode_each(rows, tokenizer, options, lost))
    cut, dropped, empty = (len(lost[name]) for name in ("cut", "dropped", "empty"))
    # An encoder–decoder may have to answer held-out rows while it trains.
    if (answered or kind == "encoder_decoder") and (dropped or empty):
        raise ValueError(
            f"{rows.place(min(lost['dropped'] + lost['empty']))} cannot be answered: a text of "
            f"it gives this tokenizer no token, or is longer than max_length={length}: "
            "correct it, or raise max_length"
        )
    if dataset is None:
        raise ValueError(
            f"{rows.path} has no row to learn from: every one gives this tokenizer no token to "
            f"read, or none to learn within max_length={length}: raise it, or correct the rows"
        )
    most = f"max_length={length}" + (
        f", the response to max_target_length={target}" if target else ""
    )
    said = {
        f"{cut} were cut to {most}": cut,
        f"{dropped} were left out because nothing of the response was left": dropped,
        f"{empty} were left out because they give this tokenizer no token": empty,
    }
    if any(said.values()):
        these = ", ".join(words for words, count in said.items() if count)
        logger.warning("%s: of %d rows %s", rows.path, len(rows.rows), these)
    return dataset


def encode_each(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions, lost: Lost
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The index of each row that has something to learn, and its features; of texts, windows."""
    index, total = 0, None if rows.form == "text" else len(rows.rows)
    each = encode(rows.rows, rows.form, tokenizer, options)
    try:
        for one in progress_bar(each, f"Encoding {rows.path}", total=total):
            if one.features is None:
                lost["dropped" if one.truncated else "empty"].append(index)
            else:
                if one.truncated:
                    lost["cut"].append(index)
                yield index, one.features
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


def lost_and_first(
    rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """What becomes of the rows when they are encoded, and the first that is learned.

    The counts are those of ``Lost``, and ``copies`` of earlier rows.
    """
    lost, first = Lost(list), None
    for index, one in encode_each(rows, tokenizer, encode_options(rows, recipe, kind), lost):
        first = first or _first_row(rows, index, one, tokenizer, kind)
    counts = {name: len(lost[name]) for name in ("cut", "dropped", "empty")}
    # Such rows are encoded: texts are joined, a head reads [CLS], and an answer has its end.
    if names := BLANK.get(rows.form):
        counts["empty"] = sum(not "".join(r.get(n, "") for n in names).strip() for r in rows.rows)
    different = {json.dumps(row, sort_keys=True) for row in rows.rows}
    return {**counts, "copies": len(rows.rows) - len(different)}, first


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
        "learned": rows.labels[learned] if rows.form == "label" else learned,
    }
