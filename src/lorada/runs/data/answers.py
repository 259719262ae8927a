"""How answers to rows of a user's own are limited and scored, as the training rows suggest."""

from typing import Any

from lorada.data.chosen_metric import ChosenMetric, choose_metric
from lorada.data.responses import longest_response
from lorada.data.task import Kind
from lorada.runs.data.rows import JSONL, LEAST_ANSWER, Rows
from lorada.runs.recipe import Recipe


def answer_limit(
    rows: Rows, recipe: Recipe, tokenizer: Any, kind: Kind, context: int | None
) -> int | None:
    """The most tokens of an answer: a tenth more than the longest response, and at least 32.

    Args:
        rows: the training rows.
        recipe: of the training, which may cut responses.
        tokenizer: of the model.
        kind: of the model; a decoder keeps half of its context for the prompt.
        context: how many tokens the model can read; None for any number.

    Returns:
        None for rows of a benchmark, whose protocol says it, and for rows without responses.
    """
    longest = longest_response(rows.rows, rows.form, tokenizer) if recipe.task == JSONL else 0
    if not longest:
        return None
    longest = min(longest, recipe.max_target_length or recipe.max_length)
    most = max(LEAST_ANSWER, longest + -(-longest // 10))
    if context is None:
        return most
    return min(most, context if kind == "encoder_decoder" else max(LEAST_ANSWER, context // 2))


def metric_of(rows: Rows, recipe: Recipe) -> ChosenMetric | None:
    """The metric that answers are scored by; None for a benchmark, which has its own.

    Args:
        rows: the training rows.
        recipe: of the training.

    Raises:
        ValueError: if such rows cannot be scored by the recipe's metric.
        FileNotFoundError: if that is a function of a file that is not there.
    """
    if recipe.task == JSONL:
        return choose_metric(recipe.metric, rows.rows, rows.form)
    if recipe.metric is not None:
        raise ValueError(
            f"metric={recipe.metric} is for rows of your own, and task={recipe.task} has its own "
            "metric: leave it out"
        )
    return None
