"""What single answers score, and which metrics a user may name for which rows."""

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorada.data.rows.row_content import answer_of
from lorada.data.scoring.json_answers import is_json, json_match
from lorada.data.scoring.metrics import (
    accuracy,
    contains,
    exact_match,
    set_f1,
    set_match,
    target_of,
    weighted_by_class,
)
from lorada.data.scoring.text_metrics import chrf, rouge_l
from lorada.data.task import Protocol
from lorada.support.metric_names import FREE, NAMES, names_for
from lorada.support.row_sources import CODE, Form, Row

RowScores = dict[str, float]  # of one answer, by the name of the metric
RowValue = Callable[[str, Row, Row], float]  # of an answer, its row, and that row as it was read
# Those that are computed from an answer and its row only when they are asked for.
LATER: dict[str, Callable[[str, Row], float]] = {
    "json_match": json_match,
    "rougeL": rouge_l,
    "chrf": chrf,
}


def fits(metric: str, form: Form) -> bool:
    """Whether rows of a form can be scored by a metric."""
    return metric in NAMES[form] or (CODE in metric and form in FREE)


def refuse_metric(metric: str, form: Form) -> None:
    """Refuse a metric that rows of a form cannot be scored by, and a function of a missing file."""
    if not fits(metric, form):
        raise ValueError(f"metric={metric!r} does not score {form} rows: take {names_for(form)}")
    if CODE in metric:
        path = Path(metric.rpartition(":")[0])
        if not path.is_file():
            raise FileNotFoundError(f"metric={metric}: there is no file {path}")


def refuse_unnamed(metric: str | None, where: object, option: str = "--metric ") -> None:
    """Refuse code that a saved file names as its metric and the command does not.

    Args:
        metric: that the saved file names.
        where: that file, or its run.
        option: by which the user would name it.
    """
    if metric is not None and CODE in metric:
        raise ValueError(
            f"{where} is scored by {metric}, and code of a file runs only if you name it: add "
            f"{option}{metric}"
        )


def row_value(metric: str) -> RowValue | None:
    """What computes a metric of one row from its answer; None for a metric that is always there.

    Code of the user's file runs here. It gets all columns of the row, as the file has them.
    """
    if metric in LATER:
        return lambda answer, row, columns: LATER[metric](answer, row)
    if CODE in metric:
        return _users_metric(metric)
    return None


def _users_metric(metric: str) -> RowValue:
    """Load the function of a user's file, ``FILE.py:function``, and wrap it as a metric of one row.

    Raises:
        ValueError: naming the metric, for a file that fails or lacks the function. What it returns
            raises it too, where the function fails for an answer or gives no finite number.
    """
    path, _, name = metric.rpartition(":")
    try:
        function = runpy.run_path(path)[name]
    except Exception as error:  # of any class: it is the user's code
        raise ValueError(f"metric={metric} cannot be loaded: {error!r}") from error

    def of_row(answer: str, row: Row, columns: Row) -> float:
        # Of a chat the last turn is the answer, and the one before it what was asked.
        prompt = row["messages"][-2]["content"] if "messages" in row else row["prompt"]
        try:
            value = float(function(prompt, answer_of(row), answer, columns))
        except Exception as error:  # again of any class
            raise ValueError(f"metric={metric} failed for {answer!r}: {error!r}") from error
        if not math.isfinite(value):
            raise ValueError(f"metric={metric} gave {value} for {answer!r}: it must be finite")
        return value

    return of_row


def row_metrics(protocol: Protocol, answers: list[Any], rows: list[Row]) -> list[RowScores]:
    """The metrics of each answer that cost nothing, without the row's loss.

    - A class: ``accuracy``, 100 if it is right, else 0; and ``balanced_accuracy``, the same times
      a weight by which each class counts as much as any other.
    - Several labels: ``f1``, as of ``set_f1``, and ``exact_match``, 100 if all are right, else 0.
    - A candidate: ``accuracy``. A number: ``mae``, its distance from the right one.
    - A text: the protocol's main metric of this row alone, in percent; of BLEU it is the
      sentence-level score. A text that is asked to be exact has ``contains`` too, and
      ``json_match`` if a right answer is an object or a list of JSON.
    - Plain text, which is scored by windows: the mean ``loss`` of each window in nats per token,
      the windows of one length after those of another. Where the last window is shorter, each loss
      is weighted by the window's share of the tokens, so that the mean is that of all tokens.
    """
    if protocol.form == "text":
        return _window_losses(protocol, answers)
    pairs = list(zip(answers, rows, strict=True))
    if protocol.form == "score":
        return [{"mae": abs(answer - float(row["score"]))} for answer, row in pairs]
    if protocol.form == "labels":
        return [_label_scores(labels, row["labels"]) for labels, row in pairs]
    if protocol.form == "choice":
        return [accuracy([answer], [row]) for answer, row in pairs]
    if protocol.form == "label":
        return _class_scores_of_rows(answers, rows)
    scores = [_main_score(protocol, answer, row) for answer, row in pairs]
    if protocol.score is exact_match:
        _add_text_scores(scores, answers, rows)
    return scores


def _window_losses(protocol: Protocol, windows: list[Any]) -> list[RowScores]:
    """The loss of each window of plain text, or of each window of several lengths."""
    if protocol.lengths:
        losses_of_windows: list[RowScores] = []
        for _, losses in windows:
            losses_of_windows += [{"loss": loss} for loss in losses]
        return losses_of_windows
    # A weight of each window by which the mean of windows is that of tokens; see ``row_metrics``.
    mean_count = sum(count for _, count in windows) / len(windows)
    return [{"loss": loss * count / mean_count} for loss, count in windows]


def _label_scores(labels: list[str], right_labels: list[str]) -> RowScores:
    """The scores of one row with several labels."""
    return {"f1": set_f1(labels, right_labels), "exact_match": set_match(labels, right_labels)}


def _class_scores_of_rows(answers: list[str], rows: list[Row]) -> list[RowScores]:
    """The accuracy of each row, 100 or 0, and the same weighted by its class."""
    targets = [target_of(row) for row in rows]
    right = [
        accuracy([answer], [row])["accuracy"] for answer, row in zip(answers, rows, strict=True)
    ]
    scores = []
    for value, weighted in zip(right, weighted_by_class(right, targets), strict=True):
        scores.append({"accuracy": value, "balanced_accuracy": weighted})
    return scores


def _main_score(protocol: Protocol, answer: Any, row: Row) -> RowScores:
    """The protocol's main metric of one row: the first that it has."""
    metrics = protocol.score([answer], [row])
    name = next(iter(metrics))
    return {name: metrics[name]}


def _add_text_scores(scores: list[RowScores], answers: list[str], rows: list[Row]) -> None:
    """Add to each row's scores the other metrics of texts that are asked to be exact.

    ``json_match`` is added to all rows if any of them has an answer that is JSON.
    """
    has_json = any(is_json(answer_of(row)) for row in rows)
    for scores_of_row, answer, row in zip(scores, answers, rows, strict=True):
        scores_of_row["contains"] = contains(answer, row)
        if has_json:
            scores_of_row["json_match"] = json_match(answer, row)
