"""How many tokens an answer may have: as many as those that are learned, and some more."""

import json
from itertools import groupby
from operator import itemgetter
from typing import Any

from lorada.data.chats import ASSISTANT, LossOn, chat_tokens
from lorada.data.task import Kind
from lorada.data.task_rows import LEAST_ANSWER, Rows
from lorada.data.tool_calls import CALLS
from lorada.data.usual_responses import usual_longest
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.metric_names import FREE

MEASURED = 64  # rows with the longest answers, of which the template is asked how long they are


def answer_limit(
    rows: Rows, recipe: Recipe, tokenizer: Any, kind: Kind, context: int | None
) -> int | None:
    """The most tokens of an answer: a tenth more than the longest that is learned, 32 at least.

    A few answers that are much longer than the others are left out (``usual_longest``). Of a model
    that reads ``context`` tokens (None for any number), a decoder keeps half for the prompt. None
    for rows of a benchmark, whose protocol says it, and for rows without responses.
    """
    if recipe.task != JSONL or rows.form not in FREE:
        return None
    if rows.form == "messages":
        longest = _longest_turn(rows, recipe, tokenizer)
    elif rows.rows:
        longest = usual_longest(_token_counts(rows.responses, tokenizer))
    else:
        return None
    cut = recipe.max_target_length if rows.form == "prompt" else None
    longest = min(longest, cut or recipe.max_length)
    room = context if context is None or kind == "encoder_decoder" else context // 2
    most = longest + -(-longest // 10)
    return max(LEAST_ANSWER, most if room is None else min(most, room))


def _longest_turn(rows: Rows, recipe: Recipe, tokenizer: Any) -> int:
    """The most tokens of one answer in chats, as the template writes it, without its end.

    The template is asked about the rows whose answers are the longest without it.
    """
    texts, owners = list[str](), list[int]()
    for index, row in enumerate(rows.rows):
        for turn in row["messages"]:
            if turn["role"] == ASSISTANT:
                texts.append(" ".join([turn.get("content") or "", json.dumps(turn.get(CALLS))]))
                owners.append(index)
    counts = _token_counts(texts, tokenizer)
    longest_of = dict.fromkeys(owners, 0)
    for index, count in zip(owners, counts, strict=True):
        longest_of[index] = max(longest_of[index], count)
    usual = usual_longest(counts)
    measured = [index for index, count in longest_of.items() if count <= usual]
    chosen = sorted(measured, key=lambda index: -longest_of[index])[:MEASURED]
    loss_on: LossOn = "last" if recipe.loss_on == "last" else "response"
    longest = 0
    for index in chosen:
        with rows.placing(index):
            ids, learned = chat_tokens(rows.rows[index], tokenizer, loss_on=loss_on)
        pairs = zip(ids, learned, strict=True)
        for counts, group in groupby(pairs, key=itemgetter(1)):
            if counts:
                answer = [token for token, _ in group]
                longest = max(longest, len(_without_end(answer, tokenizer)))
    return longest


def _without_end(answer: list[int], tokenizer: Any) -> list[int]:
    """The tokens of an answer up to its last letter."""
    size = len(answer)
    while size and not tokenizer.decode(answer[size - 1 : size], skip_special_tokens=True).strip():
        size -= 1
    return answer[:size]


def _token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    """How many tokens each text has."""
    counts = list[int]()
    for start in range(0, len(texts), 1000):
        batch = tokenizer(texts[start : start + 1000], add_special_tokens=False, verbose=False)
        counts += map(len, batch["input_ids"])
    return counts
