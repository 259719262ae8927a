"""How many tokens an answer may have: as many as those that are learned, and some more."""

import json
from itertools import groupby
from operator import itemgetter
from typing import Any

from lorada.data.chats import ASSISTANT, LossOn, chat_tokens
from lorada.data.rows.rows import Rows
from lorada.data.scoring.usual_responses import usual_longest
from lorada.data.task import Kind, Protocol
from lorada.data.tool_calls import CALLS
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.metric_names import FREE
from lorada.support.row_sources import Row

LEAST_ANSWER = 32  # tokens
MEASURED = 64  # rows with the longest answers, of which the template is asked how long they are
TEXTS_AT_ONCE = 1000


def answer_limit(
    rows: Rows, recipe: Recipe, tokenizer: Any, kind: Kind, context: int | None
) -> int | None:
    """The most tokens of an answer: a tenth more than the longest that is learned, 32 at least.

    A few answers that are much longer than the others are left out (``usual_longest``). Of a model
    that reads ``context`` tokens (None for any number), a decoder keeps half for the prompt. None
    for rows of a benchmark, whose protocol says it, and for rows without responses.
    """
    if recipe.task != JSONL or rows.form not in FREE or not rows.rows:
        return None
    learned_length = recipe.max_length
    if rows.form == "messages":
        longest = _longest_turn(rows, recipe, tokenizer)
    else:
        longest = usual_longest(_token_counts(rows.responses, tokenizer))
        learned_length = recipe.max_target_length or recipe.max_length
    longest = min(longest, learned_length)
    limit = longest + -(-longest // 10)  # a tenth more, rounded up
    if context is not None:
        # An encoder–decoder writes in a sequence of its own, a decoder behind the prompt.
        room = context if kind == "encoder_decoder" else context // 2
        limit = min(limit, room)
    return max(LEAST_ANSWER, limit)


def generation_of(
    recipe: Recipe, protocol: Protocol, max_answer_tokens: int | None = None
) -> dict[str, Any]:
    """Settings of ``generate``: the protocol's, with the recipe's ``max_new_tokens`` over them.

    ``max_answer_tokens`` are the most tokens of an answer if neither says it; None for 32.
    """
    settings = {"max_new_tokens": max_answer_tokens or LEAST_ANSWER, **protocol.generation}
    if recipe.max_new_tokens is not None:
        settings["max_new_tokens"] = recipe.max_new_tokens
    return settings


def _longest_turn(rows: Rows, recipe: Recipe, tokenizer: Any) -> int:
    """The most tokens of one answer in chats, as the template writes it, without its end.

    The template is asked about the rows whose answers are the longest without it.
    """
    # What is learned as an answer is what may be written as one; with "all" that says nothing.
    loss_on: LossOn = "last" if recipe.loss_on == "last" else "response"
    longest = 0
    for index in _rows_with_long_answers(rows.rows, tokenizer):
        with rows.placing(index):
            ids, learned = chat_tokens(rows.rows[index], tokenizer, loss_on=loss_on)
        pairs = zip(ids, learned, strict=True)
        for is_answer, group in groupby(pairs, key=itemgetter(1)):
            if is_answer:
                answer = [token for token, _ in group]
                longest = max(longest, len(_without_end(answer, tokenizer)))
    return longest


def _rows_with_long_answers(chats: list[Row], tokenizer: Any) -> list[int]:
    """The indices of the chats with the longest answers, without odd ones; the longest first.

    To ask the template about every row would take longer than the tokens are worth.
    """
    answers: list[str] = []
    owners: list[int] = []  # of each answer, the index of its chat
    for index, row in enumerate(chats):
        for turn in row["messages"]:
            if turn["role"] == ASSISTANT:
                answers.append(" ".join([turn.get("content") or "", json.dumps(turn.get(CALLS))]))
                owners.append(index)
    counts = _token_counts(answers, tokenizer)
    # Of each chat the longest answer, without chats whose answer is much longer than the others.
    longest_of_chat = dict.fromkeys(owners, 0)
    for index, count in zip(owners, counts, strict=True):
        longest_of_chat[index] = max(longest_of_chat[index], count)
    limit = usual_longest(counts)
    usual = [index for index, count in longest_of_chat.items() if count <= limit]
    return sorted(usual, key=lambda index: -longest_of_chat[index])[:MEASURED]


def _without_end(answer: list[int], tokenizer: Any) -> list[int]:
    """The tokens of an answer up to its last letter."""
    size = len(answer)
    while size and not tokenizer.decode(answer[size - 1 : size], skip_special_tokens=True).strip():
        size -= 1
    return answer[:size]


def _token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    """How many tokens each text has."""
    counts: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = texts[start : start + TEXTS_AT_ONCE]
        batch = tokenizer(chunk, add_special_tokens=False, verbose=False)
        counts += map(len, batch["input_ids"])
    return counts
