"""The metric that rows of a user's own are scored by: one by name, or a function of the user's."""

import math
import re
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorada.data.metrics import chrf, rouge_l
from lorada.data.rows import answer_of
from lorada.support.row_sources import CODE, Form, Row

FREE: tuple[Form, ...] = ("messages", "prompt")  # forms whose right answer is a free text
# The metrics that rows of each form can be scored by, the usual one first; responses have two.
NAMES: dict[Form, tuple[str, ...]] = {
    **dict.fromkeys(FREE, ("loss", "exact_match", "contains", "rougeL", "chrf")),
    "label": ("accuracy", "balanced_accuracy", "macro_f1"),
    "choice": ("accuracy",),
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
