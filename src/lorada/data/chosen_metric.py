"""The metric that rows of a user's own are scored by: one by name, or a function of the user's."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorada.data.metrics import chrf, rouge_l
from lorada.data.responses import FREE, usual_metric
from lorada.data.rows import Form, Row, answer_of

CODE = ".py:"  # in the name of a function in a file
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


@dataclass(frozen=True)
class ChosenMetric:
    """The metric of a run or a comparison.

    Attributes:
        name: one of ``NAMES``, or ``FILE.py:function``.
        reason: why it was chosen, in words; empty if it is usual for such rows or was asked for.
    """

    name: str
    reason: str = ""

    @property
    def shown(self) -> str:
        """Its name among the metrics of a result: a file stands there without its folder."""
        return shown_name(self.name)


def choose_metric(asked: str | None, rows: Sequence[Row], form: Form) -> ChosenMetric:
    """The metric that was asked for, or the usual one for training rows like these.

    Raises:
        ValueError: if such rows cannot be scored by it.
        FileNotFoundError: if it is a function of a file that is not there.
    """
    if asked is not None:
        refuse_metric(asked, form)
        return ChosenMetric(asked)
    return ChosenMetric(*usual_metric(rows, form)) if form in FREE else ChosenMetric(NAMES[form][0])


def fits(metric: str, form: Form) -> bool:
    """Whether rows of a form can be scored by a metric."""
    return metric in NAMES[form] or (CODE in metric and form in FREE)


def is_later(metric: str) -> bool:
    """Whether a metric is computed from answers only when it is asked for."""
    return CODE in metric or metric in LATER


def refuse_metric(asked: str, form: Form) -> None:
    """Refuse a metric that rows of a form cannot be scored by; as ``choose_metric``."""
    if CODE in asked and form in FREE and not _file_of(asked)[0].is_file():
        raise FileNotFoundError(f"metric={asked}: there is no file {_file_of(asked)[0]}")
    if not fits(asked, form):
        more = " or FILE.py:function" if form in FREE else ""
        known = ", ".join(NAMES[form])
        raise ValueError(f"metric={asked!r} does not score {form} rows: take {known}{more}")


def refuse_unnamed(metric: str | None, where: object, option: str = "--metric ") -> None:
    """Refuse a user's function that a saved file names and the command does not.

    ``option`` is how a metric is named in the command.

    Raises:
        ValueError: with what to add to the command.
    """
    if metric is not None and CODE in metric:
        raise ValueError(
            f"{where} is scored by {metric}, and code of a file runs only if you name it: add "
            f"{option}{metric}"
        )


def shown_name(metric: str) -> str:
    """The name of a metric; a file stands in it without its folder."""
    path, found, function = metric.rpartition(CODE)
    return f"{Path(path).name}{found}{function}"


def absolute(metric: str) -> str:
    """A metric with the path of its file made absolute."""
    path, function = _file_of(metric)
    return f"{path.absolute()}:{function}"


def row_value(metric: str) -> RowValue | None:
    """What computes a metric of one row from its answer; None for a metric that is always there.

    Code of the user's file runs here.

    Raises:
        ValueError: if the file cannot be loaded or has no such function.
        ImportError: if a package of the extra ``metrics`` is missing.
    """
    if CODE in metric:
        return partial(_of_user, metric, _loaded(metric))
    return LATER[metric]() if metric in LATER else None


def _file_of(metric: str) -> tuple[Path, str]:
    path, _, function = metric.rpartition(":")
    return Path(path), function


def _loaded(metric: str) -> Callable[..., Any]:
    """The user's function."""
    path, name = _file_of(metric)
    spec = importlib.util.spec_from_file_location(f"lorada_metric_{path.stem}", path)
    assert spec is not None  # for every file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of any class: it is the user's code
        raise ValueError(f"metric={metric} cannot be loaded: {_said(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"metric={metric}: {path} has no function {name!r}")
    found: Callable[..., Any] = function
    return found


def _of_user(metric: str, function: Callable[..., Any], answer: str, row: Row) -> float:
    """What the user's function gives for an answer.

    Raises:
        ValueError: if it fails, or gives no finite number.
    """
    prompt = row["messages"][-2]["content"] if "messages" in row else row["prompt"]
    try:
        value = float(function(prompt, answer_of(row), answer, row))
    except Exception as error:  # of any class: it is the user's code
        raise ValueError(f"metric={metric} failed for {answer!r}: {_said(error)}") from error
    if not math.isfinite(value):
        raise ValueError(f"metric={metric} gave {value} for {answer!r}: it must be a finite number")
    return value


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
