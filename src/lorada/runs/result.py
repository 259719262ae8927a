"""Reads and writes what a run stores: ``result.json`` and ``predictions.jsonl``."""

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    WrapValidator,
)

from lorada.runs.stored_record import Number, StoredRecord, checked_as_it_is
from lorada.support.error_messages import first_problem
from lorada.support.files import as_typed, json_lines, json_text, write_atomic
from lorada.support.metric_names import LOSS
from lorada.support.row_sources import HEADED, Form

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.jsonl"


# What was measured of a training: no less than nothing.
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False), WrapValidator(checked_as_it_is)]


class RowsMetrics(StoredRecord):
    """What a run scores on some rows: metrics by name, and what has to be said beside them.

    Attributes:
        n: how many rows were scored; of plain text the number of windows.
        cut: how many answers were cut at ``max_new_tokens``.
        loss_n: how many rows the loss covers, if these are not all.
        commonest: the commonest answer of the training rows, as ``answer``, and by the names of
            the metrics what it scores, given to every row.
        unfound: in words, which classes or labels no answer names.
        sha256: of the rows.
        answers_sha256: of the answers and of all that they depend on.
    """

    # Metrics by name. A word is none of ours; somebody else's is kept.
    __pydantic_extra__: dict[str, float | int | str | None]

    n: int
    cut: int = 0
    max_new_tokens: int | None = None
    loss_n: int | None = None
    commonest: dict[str, str | Number | list[str] | None] | None = None
    unfound: str | None = None
    sha256: str | None = None
    answers_sha256: str | None = None

    @property
    def scores(self) -> dict[str, float | None]:
        """The metrics by name, the main one first; None for one that is undefined."""
        scores = {}
        for name, value in self.further.items():
            if not isinstance(value, str):
                scores[name] = value
        return scores


class StoredRecipe(StoredRecord):
    """Fields of a run's recipe that its uses read beside the recipe's own file."""

    training: dict[str, Any] = Field(default={})
    parts: dict[str, dict[str, Any]] = Field(default={})
    trust_remote_code: bool = False
    task: str = ""
    protocol: str | None = None
    train_on: str | None = None


class ScoringMetric(StoredRecord):
    """What the answers of a run are scored by: its name, and why, if its rows have decided it."""

    name: str | None = None
    reason: str = ""


class LearnedRows(StoredRecord):
    """The rows that a run has learned."""

    file: str = ""
    rows: int = 0
    sha256: str = ""
    source: str | None = None  # of a benchmark's rows, in words


class ParameterCounts(StoredRecord):
    """How many parameters a run trains, against all of its base."""

    trainable: int = 0
    total: int = 0
    percent: Number = 0.0
    percent_of_all: Number = 0.0  # of the base with the adapter, PEFT's own convention
    paper: Number | None = None  # as the paper counts them, if it does


class RunResult(StoredRecord):
    """What a run was, what it ran on, and its scores, as ``result.json`` has them.

    Few fields must be there: those that every use of a run reads. The file has its fields in the
    order in which ``training.finish`` gives them; here come first those whose damage is named
    first.

    Attributes:
        labels: the classes or labels that its head knows, by index; empty for a run without one.
        form: the form of its rows.
        pairs: whether every row that it learned has two texts.
        commonest_answer: of its training rows; None if no answer is common.
        history: the log lines of the training that have a loss, in the order of the steps.
        metrics: what it scores, by the name of the rows.
        unparsable: the percent of answers that name no option, by the name of the rows.
        hardware: as ``hardware`` says it.
        peak_memory_bytes: of the training, of the process with the largest.
        seconds_per_step: None if no step was timed.
        base_revision: of the base on the hub; None for a folder.
        learned_scores: the ``mean`` and ``sd`` of scores, if rows have scores.
        processes: how many trained together.
        settings_from: where the method's settings are from, in words.
        started_from: the adapter that the training began with.
        adapter_parts: PEFT types of the adapter's parts.
        relative_norm: of what the maps add, against the softmax alone, at the last log line; None
            for a method without maps.
        guessing_loss: on the held-out rows, of one answer for all of them.
        wall_time_s: seconds of the training.
        resumed_from: the checkpoint that it went on from.
        guessing: of a table's run, the metrics of the commonest answer, by task.
    """

    labels: list[str]
    form: Form
    pairs: bool = False
    commonest_answer: str | Number | list[str] | None = None
    history: list[dict[str, Number | None]]
    metrics: dict[str, RowsMetrics]
    unparsable: dict[str, Number] | None = None
    hardware: dict[str, str | Number | None] | None = None
    recipe: StoredRecipe | None = None
    peak_memory_bytes: Cost | None = None
    seconds_per_step: Cost | None = None
    method: str = ""
    model: str = ""
    base_revision: str | None = None
    task: str = ""
    metric: ScoringMetric | None = None
    max_new_tokens: int | None = None
    learned_scores: dict[str, Number] | None = None
    seed: int = 0
    data: LearnedRows | None = None
    versions: dict[str, str] = Field(default={})
    processes: int = 1
    parameters: ParameterCounts = ParameterCounts()
    settings_from: str = ""
    started_from: str | None = None
    adapter_parts: list[str] = Field(default=[])
    adapter_bytes: int = 0
    steps: int = 0
    train_loss: Number | None = None
    relative_norm: Number | None = None
    guessing_loss: Number | None = None
    wall_time_s: Number = 0.0
    resumed_from: str | None = None
    guessing: dict[str, dict[str, Number | None]] = Field(default={})

    @property
    def metric_name(self) -> str | None:
        """The name of what its answers are scored by; None for a benchmark, which has its own."""
        return None if self.metric is None else self.metric.name


def read_result(run: Path) -> RunResult:
    """The result of a run.

    Raises:
        ValueError: for a run that is not finished, and a file that is no result.
    """
    path = run / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{run} has no {RESULT_FILE}: train it first, or finish it with --resume")
    return result_in(path)


def result_in(path: Path) -> RunResult:
    """Read the result in a file; refuse a file that is not JSON, or not a result."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        return RunResult.model_validate(stored)
    except ValidationError as error:
        where, wrong = first_problem(error)
        raise ValueError(f"{path} is not the result of a run: {where or 'it'}: {wrong}") from error


def refuse_no_text(run: Path, form: str, labels: Sequence[str]) -> None:
    """Refuse a run with a head, which writes no text, where text is asked for."""
    if form in HEADED:
        what = f"a classifier of {', '.join(labels)}" if labels else "a scorer"
        ask = as_typed("lorada", "predict", run, "--text", "TEXT")
        raise ValueError(f"{run} is {what} and writes no text: ask it with {ask}")


def write_result(run: Path, result: RunResult) -> None:
    """Write the result of a run, completely or not at all."""
    write_atomic(run / RESULT_FILE, _text_of(result))


def _text_of(result: RunResult) -> str:
    return json_text(result.stored()) + "\n"


def keep_scores(
    run: Path, metrics: dict[str, RowsMetrics], unparsable: dict[str, float] | None = None
) -> None:
    """Add scores to the result of a run, by the name of the rows; if that fails, only warn.

    ``unparsable`` is the percent of answers that name no option, by the same names.
    """
    # The result is read again, since another command may have scored the run meanwhile.
    result = read_result(run)
    changes: dict[str, Any] = {"metrics": {**result.metrics, **metrics}}
    if unparsable:
        changes["unparsable"] = {**(result.unparsable or {}), **unparsable}
    _keep(run / RESULT_FILE, _text_of(result.model_copy(update=changes)), "the scores")


def _keep(path: Path, text: str, what: str) -> None:
    """Write a file of a run; if it cannot be written, only warn, as ``what`` was printed too."""
    try:
        write_atomic(path, text)
    except OSError as error:
        reason = error.strerror or error
        logger.warning("%s could not be kept in %s: %s", what, path, reason)


class Prediction(BaseModel):
    """One row of one scoring: a line of ``predictions.jsonl``.

    ``--with-text`` adds ``text`` (what was asked) and ``right`` (the right answer), except to
    windows of plain text, which have no right answer.

    Attributes:
        rows: the name of the rows, as among the metrics in ``result.json``.
        row: the row's number in its file, from 1; of plain text the number of the window.
        answer: what the model answered: a text, a class, a list of labels, the index of a
            candidate, a number; null for a window.
        loss: the row's loss in nats (a number's: its squared error); null if none is measured.
        metrics: further, what ``row_metrics`` says of the row.
        group: further, what the row shares with others, if its file says so.
        cut: further, true for a text that was cut at the most tokens of an answer.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    rows: str
    row: int
    answer: str | int | float | list[str] | None
    loss: float | None
    metrics: dict[str, FiniteFloat | None] = Field(default={})
    group: JsonValue = None
    cut: bool = False
    text: JsonValue = None
    right: JsonValue = None

    @property
    def metrics_and_loss(self) -> dict[str, float | None]:
        """The row's loss and its metrics, by name; a metric of that name is the loss."""
        return {LOSS: self.loss, **self.metrics}


def at_scale(name: str, scale: float) -> str:
    """The name of rows for what a run answers at a smaller scale of its adapter."""
    return f"{name} (scale {scale:g})"


def read_predictions(run: Path) -> list[Prediction]:
    """The lines of a run's predictions, in the file's order; none if the run was never scored.

    A line that is damaged is refused by its number.
    """
    path = run / PREDICTIONS_FILE
    if not path.is_file():
        return []
    predictions = []
    # Bytes, because the splitlines() of a text also splits at U+2028, which a JSON string may hold.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            where, wrong = first_problem(error, depth=1)
            raise ValueError(
                f"{path} line {number} is damaged ({where or 'it'}: {wrong}): delete the file and "
                "score the run again"
            ) from error
    return predictions


def write_predictions(run: Path, name: str, predictions: Iterable[Prediction]) -> None:
    """Put predictions in place of those of the rows ``name``, wholly; if that fails, only warn."""
    by_rows: dict[str, list[Prediction]] = {}
    for prediction in read_predictions(run):
        by_rows.setdefault(prediction.rows, []).append(prediction)
    by_rows[name] = list(predictions)
    # Fields that a row has not, such as the group, are in no line of it.
    lines = [each.model_dump(exclude_unset=True) for each in chain(*by_rows.values())]
    _keep(run / PREDICTIONS_FILE, json_lines(lines), "the answers")
