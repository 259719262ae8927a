"""How answers to rows of a user's own are limited and scored, as the training rows suggest."""

from typing import Any

from lorada.data.chosen_metric import ChosenMetric, choose_metric, responses
from lorada.data.task import Kind
from lorada.data.task_rows import JSONL, LEAST_ANSWER, Rows
from lorada.data.tokenize import CHUNK
from lorada.runs.recipe import Recipe


def answer_limit(
    rows: Rows, recipe: Recipe, tokenizer: Any, kind: Kind, context: int | None
) -> int | None:
    """The most tokens of an answer: a tenth more than the longest response, and at least 32.

    Of a model that reads ``context`` tokens (None for any number), a decoder keeps half for the
    prompt. None for rows of a benchmark, whose protocol says it, and for rows without responses.
    """
    texts, longest = list(responses(rows.rows, rows.form)), 0
    if recipe.task != JSONL or not texts:
        return None
    for start in range(0, len(texts), CHUNK):
        found = tokenizer(texts[start : start + CHUNK], add_special_tokens=False, verbose=False)
        longest = max(longest, *map(len, found["input_ids"]))
    longest = min(longest, recipe.max_target_length or recipe.max_length)
    room = context if context is None or kind == "encoder_decoder" else context // 2
    most = longest + -(-longest // 10)
    return max(LEAST_ANSWER, most if room is None else min(most, room))


def metric_of(rows: Rows, recipe: Recipe) -> ChosenMetric | None:
    """The metric that answers are scored by; None for a benchmark, which has its own."""
    if recipe.task == JSONL:
        return choose_metric(recipe.metric, rows.rows, rows.form)
    if recipe.metric is not None:
        raise ValueError(
            f"metric={recipe.metric} is for rows of your own: leave it out with task={recipe.task}"
        )
    return None
