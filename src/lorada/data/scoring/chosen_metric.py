"""By which metric answers to a user's rows are scored: the named one, or what the rows suggest."""

import re
from dataclasses import dataclass

from lorada.data.rows.rows import Rows
from lorada.data.scoring.json_answers import mostly_json
from lorada.data.scoring.row_metrics import refuse_metric
from lorada.data.scoring.usual_responses import is_usual
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.metric_names import FREE, NAMES

MOST_WORDS = 5  # of a response that an answer can be expected to equal
# A word; in scripts that put no blanks between words (Thai, Chinese, Japanese), a letter.
ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")


@dataclass(frozen=True)
class ChosenMetric:
    """What answers to a user's own rows are scored by."""

    name: str  # one of ``NAMES``, or ``FILE.py:function``
    reason: str = ""  # why, in words; empty unless the rows have decided it


def metric_of(rows: Rows, recipe: Recipe) -> ChosenMetric | None:
    """The metric that answers are scored by: the recipe's, or the usual one for rows like these.

    None for a benchmark, which has its own.
    """
    if recipe.task != JSONL:
        if recipe.metric is not None:
            raise ValueError(
                f"metric={recipe.metric} is for rows of your own: leave it out with "
                f"task={recipe.task}"
            )
        return None
    if recipe.metric is not None:
        refuse_metric(recipe.metric, rows.form)
        return ChosenMetric(recipe.metric)
    if rows.form not in FREE:
        return ChosenMetric(NAMES[rows.form][0])
    return _metric_for_responses(rows.responses)


def _metric_for_responses(responses: list[str]) -> ChosenMetric:
    """The metric for free texts, and why: no answer equals a long response to the letter."""
    if mostly_json(responses):
        reason = "the responses of the training rows are objects or lists of JSON"
        return ChosenMetric("json_match", reason)
    count = sum(len(WORD.findall(text)) > MOST_WORDS for text in responses)
    reason = (
        f"{count:,} of {len(responses):,} responses of the training rows are longer than five words"
    )
    name = "loss" if is_usual(count, len(responses)) else "exact_match"
    return ChosenMetric(name, reason)
