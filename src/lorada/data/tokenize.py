"""Turns rows of each form into token ids and labels: ``encode``, and what a run needs beside it.

``labels`` say which tokens a model learns. Lengths are fitted to the model's context.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorada.data.batches import IGNORED, ROWS_AT_ONCE, dataset_of
from lorada.data.chat_template import TurnsRefused, for_template, rendered
from lorada.data.chats import LossOn, chat_tokens, tokens_behind, turn_end, written_answer
from lorada.data.row_lengths import Encoded, EncodingLog, RowLengths, lengths_of
from lorada.data.rows.rows import Rows, refuse_kind
from lorada.data.shorten import chat_within, prompt_beside, without_middle
from lorada.data.task import Kind
from lorada.data.tool_calls import ends_in_calls
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row

logger = logging.getLogger(__name__)


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


def encode(
    rows: list[Row], form: Form, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Tokenise rows; texts are joined, and what is yielded of them are ``windows``."""
    if form == "text":
        yield from windows(rows, tokenizer, options)
        return
    encode_chunk = _encoder_of(form, options)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield from encode_chunk(rows[start : start + ROWS_AT_ONCE], tokenizer, options)


def _encoder_of(form: Form, options: EncodeOptions) -> Callable[..., Iterator[Encoded]]:
    """The function that encodes rows of a form."""
    if form in HEADED:
        return _classified_texts
    if form == "messages":
        return _conversations
    if form == "choice":
        return _choices
    if options.kind == "encoder_decoder":
        return _sources_and_targets
    return _joint_texts if options.joint else _prompts_and_responses


def _classified_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """One text or a pair of texts, with what the head learns of it."""
    names = [name for name in ("text", "text_pair") if name in rows[0]]  # all rows have the same
    columns = []
    for name in names:
        columns.append([row[name] for row in rows])
    batch = tokenizer(*columns)
    # Truncation leaves special tokens alone, so a length that has no room for more reads nothing.
    special = tokenizer.num_special_tokens_to_add(pair=len(names) > 1)
    has_room = options.max_length > special
    for index, row in enumerate(rows):
        inputs: Any = {key: values[index] for key, values in batch.items()}
        length = len(inputs["input_ids"])
        is_cut = length > options.max_length
        if is_cut and not has_room:
            yield Encoded(None, is_cut, length)
            continue
        if is_cut:  # truncation keeps the special tokens at the end
            texts = [row[name] for name in names]
            inputs = tokenizer(*texts, truncation=True, max_length=options.max_length)
        if not inputs["input_ids"]:
            yield Encoded(None, is_cut, length)
            continue
        outputs = _right_outputs(row, options.labels)
        yield Encoded({**inputs, "labels": outputs}, is_cut, length)


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
    prompts = _prompt_ids(rows, tokenizer)
    response_ids = tokenizer(responses, add_special_tokens=False)["input_ids"]
    for prompt, whole_response in zip(prompts, response_ids, strict=True):
        length = len(prompt) + len(whole_response)
        response = whole_response[: options.target_length]
        if options.cut == "middle":
            prompt = prompt_beside(prompt, response, options.max_length)
        learned = [False] * len(prompt) + [True] * len(response)
        encoded = _sequence(prompt + response, learned, options, length)
        if len(response) < len(whole_response):
            encoded = encoded._replace(answer_cut=True)
        yield encoded


def without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text without the end token that some tokenizers add to every text."""
    if tokenizer.eos_token_id == tokenizer.bos_token_id:  # as GPT-2's, which begins texts
        return ids
    has_end = ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if has_end else ids


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds an end token to every text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return without_end(ids, tokenizer) != ids


def _prompt_ids(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of the prompts of rows, without an end token: the response goes on from there."""
    batch: list[list[int]] = tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    return [without_end(ids, tokenizer) for ids in batch]


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end token; nothing for a tokenizer without one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _conversations(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Conversations, in which every answer of the assistant counts, or the last alone."""
    for row in rows:
        ids, learned = chat_tokens(row, tokenizer, loss_on=options.loss_on)
        length = len(ids)
        if length > options.max_length and options.cut == "middle":
            ids, learned = chat_within(row, tokenizer, options.max_length, loss_on=options.loss_on)
        yield _sequence(ids, learned, options, length)


def _sequence(ids: list[int], learned: list[bool], options: EncodeOptions, length: int) -> Encoded:
    """Ids, of which some are ``learned``, with their labels, cut at ``max_length``.

    ``length`` is how many there were before any other cut.
    """
    answer_cut = any(learned[options.max_length :])
    ids = ids[: options.max_length]
    labels = []
    for token, counts in zip(ids, learned, strict=False):
        labels.append(token if counts or options.loss_on == "all" else IGNORED)
    is_cut = len(ids) < length
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        return Encoded(None, is_cut, length, answer_cut)
    features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return Encoded(features, is_cut, length, answer_cut)


def _joint_texts(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Prompt and response tokenised as one text, with an end token if there is room for it."""
    end = _end(tokenizer)
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    prompts = _prompt_ids(rows, tokenizer)
    for ids, prompt in zip(tokenizer(texts)["input_ids"], prompts, strict=True):
        if len(ids) < options.max_length and ids[-1:] != end:
            ids = ids + end
        learned = [index >= len(prompt) for index in range(len(ids))]
        yield _sequence(ids, learned, options, len(ids))


def _sources_and_targets(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """What an encoder reads and what its decoder learns to write, cut separately."""
    sources = tokenizer([str(row["prompt"]) for row in rows])["input_ids"]
    targets = tokenizer(text_target=[str(row["response"]) for row in rows])["input_ids"]
    for row, whole_source, whole_target in zip(rows, sources, targets, strict=True):
        if not whole_source:
            yield Encoded(None, False, 0)
            continue
        source = _cut_source(row, whole_source, tokenizer, options)
        target, is_target_cut = _cut_target(row, whole_target, tokenizer, options)
        mask = [1] * len(source)
        features = {"input_ids": source, "attention_mask": mask, "labels": target}
        length = len(whole_source)
        is_cut = length > options.max_length or is_target_cut
        yield Encoded(features, is_cut, length, is_target_cut)


def _cut_source(
    row: Row, ids: list[int], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> list[int]:
    """The ids of what an encoder reads, within ``max_length``, with their special tokens."""
    if options.cut == "middle":  # special tokens are at the ends
        return without_middle(ids, options.max_length)
    if len(ids) <= options.max_length:
        return ids
    # Truncation keeps the special tokens at the end.
    encoded = tokenizer(str(row["prompt"]), truncation=True, max_length=options.max_length)
    return list(encoded["input_ids"])


def _cut_target(
    row: Row, ids: list[int], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> tuple[list[int], bool]:
    """The ids of what a decoder learns to write, with an end token, and whether they were cut."""
    max_length = options.target_length or options.max_length
    is_cut = len(ids) > max_length
    if is_cut:
        response = str(row["response"])
        ids = tokenizer(text_target=response, truncation=True, max_length=max_length)["input_ids"]
    if tokenizer.eos_token_id not in ids:  # without it the decoder never learns to stop
        ids = ids[: max_length - 1] + _end(tokenizer)
    return ids, is_cut


def _choices(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """A prompt and the texts that may follow it; a long prompt loses its middle or beginning."""
    prompts = _prompt_ids(rows, tokenizer)
    candidates_of_rows = _candidate_ids(rows, tokenizer)
    for row, prompt, candidates in zip(rows, prompts, candidates_of_rows, strict=True):
        longest = max(len(ids) for ids in candidates)
        length = len(prompt) + longest
        room = options.max_length - longest
        if not prompt or not all(candidates):  # a text that has no token
            yield Encoded(None, False, length)
            continue
        if room < 1:
            yield Encoded(None, True, length)
            continue
        read = without_middle(prompt, room) if options.cut == "middle" else prompt[-room:]
        divisors = []
        for text, ids in zip(row["candidates"], candidates, strict=True):
            divisors.append(_divisor(text, ids, options))
        features = {
            "prompt": read,
            "candidates": candidates,
            "divisors": divisors,
            "answer": int(row["answer"]),
            # The Trainer groups rows into batches of similar length by this name.
            "length": len(read) + longest,
        }
        yield Encoded(features, len(prompt) > room, length)


def _divisor(candidate: str, ids: list[int], options: EncodeOptions) -> int:
    """What the log-probability of a candidate is divided by.

    As in lm-eval's acc (none) and acc_norm, which counts no space before a candidate.
    """
    if options.length_norm == "none":
        return 1
    if options.length_norm == "characters":
        return len(candidate.strip()) or 1
    return len(ids)


def _candidate_ids(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[list[int]]]:
    """Ids of the candidates of each row, each where it follows the last line of the prompt."""
    pairs = []
    for row in rows:
        _, _, last_line = str(row["prompt"]).rpartition("\n")
        pairs += [(last_line, candidate) for candidate in row["candidates"]]
    candidate_ids = tokens_behind(pairs, tokenizer)
    for row in rows:
        yield list(islice(candidate_ids, len(row["candidates"])))


def windows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> Iterator[Encoded]:
    """Join documents, each with an end token, and cut them into windows of ``max_length`` tokens.

    The last window has the tokens that are left, if something is predicted in it. If only ``full``
    windows are asked for, it is left out, unless there is no other.
    """
    length = options.max_length
    unused_ids: list[int] = []  # the tokens that are in no window yet
    has_full_window = False
    for row in rows:
        unused_ids += document_ids(row, tokenizer)
        if length < 2:  # one token predicts nothing
            continue
        full = len(unused_ids) - len(unused_ids) % length
        for start in range(0, full, length):
            has_full_window = True
            yield _sequence(unused_ids[start : start + length], [True] * length, options, length)
        del unused_ids[:full]
    if options.full and has_full_window:
        return
    if 1 < len(unused_ids) < length:
        yield _sequence(unused_ids, [True] * len(unused_ids), options, len(unused_ids))


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
    return EncodeOptions(
        recipe.max_length,
        recipe.loss_on or protocol.loss_on,
        rows.labels,
        joint=protocol.joint,
        kind=kind,
        target_length=_target_length(rows, recipe, kind),
        full=bool(protocol.lengths),  # as was published
        cut="middle" if recipe.task == JSONL else "end",  # as was published
        length_norm=recipe.length_norm or "tokens",
    )


def _target_length(rows: Rows, recipe: Recipe, kind: Kind) -> int | None:
    """The most tokens of a response; None where it shares ``max_length`` with the prompt."""
    protocol = rows.protocol
    is_joint = protocol.joint and kind == "decoder"
    if rows.form != "prompt" or is_joint:
        return None
    if recipe.max_target_length is not None:
        return recipe.max_target_length
    if protocol.target_length is None:
        return None
    return min(protocol.target_length, recipe.max_length)


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
    lost = log.dropped + log.empty
    length = options.max_length
    # An encoder–decoder may have to answer held-out rows while it trains.
    must_answer = answered or options.kind == "encoder_decoder"
    if must_answer and lost:
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
    total = None if rows.form == "text" else len(rows.rows)  # nobody knows how many windows
    encoded_rows = encode(rows.rows, rows.form, tokenizer, options)
    index = 0
    try:
        for encoded in progress_bar(encoded_rows, f"Encoding {rows.path}", total=total):
            log.add(index, encoded)
            if encoded.features is not None:
                yield index, encoded.features
            index += 1
    except TurnsRefused as error:
        raise ValueError(f"{rows.place(index)}: {error}") from error


def written_calls(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows, in which a chat that ends in calls of tools has the text that a model writes."""
    if not any(map(ends_in_calls, rows.rows)):
        return rows
    with_texts = []
    for index, row in enumerate(rows.rows):
        if ends_in_calls(row):
            with rows.placing(index):
                row = {**row, "eval_response": written_answer(row, tokenizer)}
        with_texts.append(row)
    return replace(rows, rows=with_texts)


def context_of(model_config: Any) -> int | None:
    """The most tokens that a model can read; None if its config does not say."""
    context: Any = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:  # XLNet has -1, for no limit
        return None
    # RoBERTa's positions begin after the id of its pad token.
    if model_config.model_type in ("roberta", "xlm-roberta"):
        return context - int(model_config.pad_token_id) - 1
    return context


def fit_context(recipe: Recipe, model_config: Any) -> Recipe:
    """The recipe, its ``max_length`` and ``max_target_length`` within what the model can read."""
    context = context_of(model_config)
    if context is None:
        return recipe
    longest = max(recipe.eval_lengths or [0])
    if longest > context:
        raise ValueError(
            f"eval_lengths={recipe.eval_lengths}: the model's context is {context} tokens; ask for "
            f"shorter ones, or stretch its positions with rope_factor={-(-longest // context)}"
        )
    for name in ("max_length", "max_target_length"):
        length = getattr(recipe, name)
        if length is not None and length > context:
            logger.warning("%s=%d is cut to the model's %d", name, length, context)
            recipe = recipe.model_copy(update={name: context})
    return recipe
