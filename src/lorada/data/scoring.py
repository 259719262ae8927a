"""By what answers are scored, how long they may be, and the metrics of each row alone."""

import math
import re
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.metrics import accuracy, chrf, class_weights, contains, exact_match, rouge_l
from lorada.data.rows import answer_of
from lorada.data.task import Kind, Protocol
from lorada.data.task_rows import LEAST_ANSWER, Rows
from lorada.runs.recipe import JSONL, Recipe
from lorada.support.row_sources import CODE, Form, Row

FREE: tuple[Form, ...] = ("messages", "prompt")  # forms whose right answer is a free text
# The metrics that rows of each form can be scored by, the usual one first; responses have two.
NAMES: dict[Form, tuple[str, ...]] = {
    **dict.fromkeys(FREE, ("loss", "exact_match", "contains", "rougeL", "chrf")),
    "label": ("accuracy", "balanced_accuracy", "macro_f1", "loss"),
    "choice": ("accuracy", "loss"),
    "score": ("mae",),
    "text": ("perplexity", "loss"),
}
RowValue = Callable[[str, Row], float]  # of an answer to a row
# Those that are computed from an answer only when they are asked for.
LATER: dict[str, Callable[[], RowValue]] = {"rougeL": rouge_l, "chrf": chrf}
MOST_WORDS = 5  # of a response that an answer can be expected to equal
# A word; in scripts that put no blanks between words (Thai, Chinese, Japanese), a letter.
ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")


@dataclass(frozen=True)
class ChosenMetric:
    """One of ``NAMES``, or ``FILE.py:function``; and why, if rows have decided it."""

    name: str
    reason: str = ""


def responses(rows: Sequence[Row], form: Form) -> Iterator[str]:
    """The texts that a model learns to write: responses, and the assistant's turns of chats."""
    for row in rows if form in FREE else ():
        turns = row["messages"] if form == "messages" else [{"content": row["response"]}]
        for turn in turns:
            if turn.get("role", "assistant") == "assistant" and isinstance(turn["content"], str):
                yield turn["content"]


def choose_metric(asked: str | None, rows: Sequence[Row], form: Form) -> ChosenMetric:
    """The metric that was asked for, or the usual one for training rows like these."""
    if asked is not None:
        refuse_metric(asked, form)
        return ChosenMetric(asked)
    if form not in FREE:
        return ChosenMetric(NAMES[form][0])
    long = any(len(WORD.findall(text)) > MOST_WORDS for text in responses(rows, form))
    reason = f"{'a' if long else 'no'} response of the training rows is longer than five words"
    return ChosenMetric("loss" if long else "exact_match", reason)


def fits(metric: str, form: Form) -> bool:
    """Whether rows of a form can be scored by a metric."""
    return metric in NAMES[form] or (CODE in metric and form in FREE)


def refuse_metric(asked: str, form: Form) -> None:
    """Refuse a metric that rows of a form cannot be scored by; as ``choose_metric``."""
    if not fits(asked, form):
        known = ", ".join(NAMES[form]) + (" or FILE.py:function" if form in FREE else "")
        raise ValueError(f"metric={asked!r} does not score {form} rows: take {known}")
    if CODE in asked and not (path := Path(asked.rpartition(":")[0])).is_file():
        raise FileNotFoundError(f"metric={asked}: there is no file {path}")


def refuse_unnamed(metric: str | None, where: object, option: str = "--metric ") -> None:
    """Refuse a function that a saved file names and the command does not, by ``option``."""
    if metric is not None and CODE in metric:
        raise ValueError(
            f"{where} is scored by {metric}, and code of a file runs only if you name it: add "
            f"{option}{metric}"
        )


def row_value(metric: str) -> RowValue | None:
    """What computes a metric of one row from its answer; None for a metric that is always there.

    Code of the user's file runs here.
    """
    if CODE not in metric:
        return LATER[metric]() if metric in LATER else None
    path, _, name = metric.rpartition(":")
    try:
        function = runpy.run_path(path)[name]
    except Exception as error:  # of any class: it is the user's code
        raise ValueError(f"metric={metric} cannot be loaded: {error!r}") from error

    def of_row(answer: str, row: Row) -> float:
        prompt = row["messages"][-2]["content"] if "messages" in row else row["prompt"]
        try:
            value = float(function(prompt, answer_of(row), answer, row))
        except Exception as error:  # again of any class
            raise ValueError(f"metric={metric} failed for {answer!r}: {error!r}") from error
        if not math.isfinite(value):
            raise ValueError(f"metric={metric} gave {value} for {answer!r}: it must be finite")
        return value

    return of_row


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
    for start in range(0, len(texts), 1000):
        found = tokenizer(texts[start : start + 1000], add_special_tokens=False, verbose=False)
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


def row_metrics(protocol: Protocol, answers: list[Any], rows: list[Row]) -> list[dict[str, float]]:
    """The metrics of each answer that cost nothing, without the row's loss.

    - A class: ``accuracy``, 100 if it is right, else 0; and ``balanced_accuracy``, the same times
      a weight by which each class counts as much as any other.
    - A candidate: ``accuracy``.
    - A text: the protocol's main metric of this row alone, in percent. So the mean is the main
      metric of all rows if that is itself a mean over rows. BLEU is not: a row has the
      sentence-level score. A text that is asked to be exact has ``contains`` too.
    - A number: ``mae``, its distance from the right one.
    - Plain text, which is scored by windows: the mean ``loss`` of each window in nats per token,
      the windows of one length after those of another. Where the last window is shorter, each loss
      is weighted by the window's share of the tokens, so that the mean is that of all tokens.

    Args:
        protocol: how the rows were asked.
        answers: the model's answers, as ``protocol.score`` takes them.
        rows: the rows that were asked, in the same order.
    """
    if protocol.form == "text":
        if protocol.lengths:
            return [{"loss": loss} for _, losses in answers for loss in losses]
        mean = sum(count for _, count in answers) / len(answers)
        return [{"loss": loss * count / mean} for loss, count in answers]
    pairs = list(zip(answers, rows, strict=True))
    if protocol.form == "score":
        return [{"mae": abs(answer - float(row["score"]))} for answer, row in pairs]
    score = accuracy if protocol.form in ("label", "choice") else protocol.score
    found = [dict([next(iter(score([answer], [row]).items()))]) for answer, row in pairs]
    if protocol.form == "label":
        for one, weight in zip(found, class_weights(rows), strict=True):
            one["balanced_accuracy"] = weight * one["accuracy"]
    if protocol.score is exact_match:
        for one, pair in zip(found, pairs, strict=True):
            one["contains"] = contains(*pair)
    return found
