"""``lorada evaluate``: scores a finished run on held-out rows, or on the test rows of its tasks.

The metrics go into ``result.json``, and the answer to each row into ``predictions.jsonl``.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.data.forms.row_matches import Columns
from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.row_content import right_answer
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import rows_to_score
from lorada.data.scoring.row_metrics import refuse_metric, refuse_unnamed
from lorada.data.scoring.score_answers import AnswerScores, are_own, metric_names_for, score_answers
from lorada.data.task import Metrics
from lorada.data.tokenize import prompt_of, written_calls
from lorada.inference.answer_rows import answer_all
from lorada.inference.generate import generation_settings
from lorada.inference.load import Run, scoring
from lorada.inference.stored_answers import Answers, conditions_of, hash_of, stored_answers
from lorada.runs.recipe import JSONL
from lorada.runs.result import (
    Prediction,
    RowsMetrics,
    at_scale,
    keep_scores,
    read_predictions,
    read_result,
    write_predictions,
)
from lorada.support.metric_names import LOSS, LOSS_ROWS
from lorada.support.row_sources import HEADED, Row, absolute_files

BASE = " (base)"  # after the name of rows, for scores with the adapter switched off


def evaluate(
    run: Run,
    data: str | None = None,
    *,
    columns: Columns | None = None,
    base: bool = False,
    with_text: bool = False,
    metrics: Sequence[str] = (),
) -> Metrics:
    """Score a run on a file of held-out rows and keep the numbers and the answers in its folder.

    If the recipe has ``eval_rows``, so many of the rows are scored, at random. Beside the scores
    stands what the commonest answer of the training rows scores, given to every row.

    Args:
        run: the finished run.
        data: files of rows; None for the recipe's ``eval_data``.
        columns: the user's names of fields; None for those of the training.
        base: whether to switch the adapter off.
        with_text: whether to keep what was asked and the right answer beside each answer.
        metrics: what to score by, the first by rows too; none for the run's own. The answers of an
            earlier scoring are used if rows, settings and weights are the same. A function of a
            file runs only if it is named here.

    Returns:
        The metrics, the one to score by first (percent; a loss in nats per token).

    Raises:
        ValueError: for rows or metrics that do not fit the run.
    """
    if not metrics:
        refuse_unnamed(run.metric, run.folder)
    rows = rows_to_score(run.recipe, read_result(run.folder), data, columns)
    name = absolute_files(data or str(run.recipe.eval_data))
    for metric in metrics:
        refuse_metric(metric, rows.form)
    scores = _score_sets(run, {name: rows}, base=base, with_text=with_text, metrics=metrics)
    return scores[name]


def evaluate_tasks(
    run: Run, data_dir: str | None = None, *, base: bool = False, with_text: bool = False
) -> dict[str, Metrics]:
    """Score a run on the test rows of its tasks and keep the numbers and answers in its folder.

    ``data_dir`` replaces the recipe's; ``base`` and ``with_text`` are as in ``evaluate``. Returned
    are the metrics by task, and by split if a task has two; a task's main metric comes first.
    """
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    rows_by_name = scored_rows(recipe, run.form, run.labels, run.kind)
    return _score_sets(run, rows_by_name, base=base, with_text=with_text)


def answer_scaled(run: Run, scale: float, data_dir: str | None, metric: str | None) -> None:
    """Answer the held-out rows of a run, or of its tasks, and keep the answers in its folder.

    The caller has set the scale of the adapter, by which the rows are named (``at_scale``). Metrics
    of all rows together are not kept, so ``result.json`` has those of the run as it is alone.
    """
    if has_tasks(run):
        recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
        rows_by_name = scored_rows(recipe, run.form, run.labels, run.kind)
    else:
        rows = rows_to_score(run.recipe, read_result(run.folder), None)
        rows_by_name = {absolute_files(str(run.recipe.eval_data)): rows}
    metrics = [] if metric is None else [metric]
    for name, rows in rows_by_name.items():
        rows = written_calls(rows, run.tokenizer)
        with scoring(run, base=False):
            answers = answer_all(run, rows)
        _, predictions = score(run, rows, answers, at_scale(name, scale), metrics)
        write_predictions(run.folder, at_scale(name, scale), predictions)


def has_tasks(run: Run) -> bool:
    """Whether a run learned benchmark tasks, which have test rows."""
    return run.recipe.task != JSONL


def _score_sets(
    run: Run,
    rows_by_name: dict[str, Rows],
    *,
    base: bool,
    with_text: bool,
    metrics: Sequence[str] = (),
) -> dict[str, Metrics]:
    """Score a run on sets of rows, and write metrics and answers of each into its folder."""
    read_predictions(run.folder)  # a damaged file is refused before the work, not after it
    return {
        name: _score_set(run, rows, name, base=base, with_text=with_text, metrics=metrics)
        for name, rows in rows_by_name.items()
    }


def _score_set(
    run: Run, rows: Rows, name: str, *, base: bool, with_text: bool, metrics: Sequence[str]
) -> Metrics:
    """Score a run on the rows ``name``, and write metrics and answers into its folder."""
    stored_name = f"{name}{BASE}" if base else name
    rows = written_calls(rows, run.tokenizer)
    # Plain text is scored by windows, which are no answers that could be stored and used again.
    has_answers = rows.form != "text"
    conditions = ""
    answers = None
    if has_answers:
        conditions = conditions_of(run, rows, base=base)
    if has_answers and metrics:  # another metric of the same answers costs no new ones
        answers = stored_answers(run, rows, stored_name, conditions)
    with scoring(run, base=base):
        if answers is None:
            answers = answer_all(run, rows)
    found, predictions = score(run, rows, answers, stored_name, metrics, with_text=with_text)

    # Windows of several lengths cover the same texts, so these are counted.
    count = len(rows.rows) if rows.protocol.lengths else len(predictions)
    scores: Metrics = {"n": count, **found, "sha256": rows.fingerprint}
    if has_answers:
        scores["answers_sha256"] = hash_of(conditions, predictions)
    unparsable = None
    if "unparsable" in found and not base:
        unparsable = {name: found["unparsable"]}
    # First the answers: where there are metrics, there are answers too.
    write_predictions(run.folder, stored_name, predictions)
    keep_scores(run.folder, {stored_name: RowsMetrics(**scores)}, unparsable)
    return scores


def score(
    run: Run,
    rows: Rows,
    answers: Answers,
    name: str,
    metrics: Sequence[str] = (),
    *,
    with_text: bool = False,
) -> tuple[Metrics, list[Prediction]]:
    """The metrics of a run's answers to some rows, and its loss on them; and the predictions.

    Args:
        run: the run that answered.
        rows: what was answered. Rows of a user's own are scored by ``metrics``, others by their
            protocol.
        answers: the answer to each row, and its loss.
        name: that of the rows, for the predictions.
        metrics: names of metrics; none for that of the run.
        with_text: whether predictions have what was asked and the right answer.

    Returns:
        The metrics, the main one first, and the predictions in the order of the rows' numbers.
    """
    if not metrics and run.metric is not None:
        metrics = [run.metric]
    metric_names = metric_names_for(rows, metrics)
    scores = score_answers(rows, answers.values, metric_names)
    found = _with_losses({**scores.metrics, **answers.mean_loss}, rows, answers, metric_names)
    if are_own(rows) and answers.cut is not None:
        found["cut"] = sum(answers.cut)
        found["max_new_tokens"] = generation_settings(run)["max_new_tokens"]
    commonest = _commonest_scores(run, rows, metric_names, found)
    if commonest is not None:
        found["commonest"] = commonest
    predictions = _predictions(run, rows, answers, scores, name, with_text=with_text)
    return found, predictions


def _with_losses(
    metrics: Metrics, rows: Rows, answers: Answers, metric_names: Sequence[str]
) -> Metrics:
    """Metrics with the loss where it is asked for, those that were asked for first."""
    losses = [loss for loss in answers.losses if loss is not None]
    if LOSS in metric_names and LOSS not in metrics:  # of choices, only where it is asked for
        metrics[LOSS] = sum(losses) / len(losses)
    # The first metric is the main one; a function of a file is called by its file's name.
    shown_names = [Path(metric).name for metric in metric_names]
    metrics = {**{name: metrics[name] for name in shown_names}, **metrics}
    if LOSS in metrics and rows.form != "text" and len(losses) < len(rows.rows):
        metrics[LOSS_ROWS] = len(losses)
    return metrics


def _commonest_scores(
    run: Run, rows: Rows, metric_names: Sequence[str], model_metrics: Metrics
) -> dict[str, Any] | None:
    """The commonest answer of the training rows, and what it scores, given to every row.

    It has no loss, and a constant has no correlation: None if nothing is defined for it.
    """
    answer = run.commonest_answer
    if answer is None:
        return None
    metrics = score_answers(rows, [answer] * len(rows.rows), metric_names).metrics
    numbers = {}
    for name, value in metrics.items():
        # The threshold is a setting, and no score.
        if name in model_metrics and isinstance(value, float) and name != "threshold":
            numbers[name] = value
    return {"answer": answer, **numbers} if numbers else None


def _predictions(
    run: Run, rows: Rows, answers: Answers, scores: AnswerScores, name: str, *, with_text: bool
) -> list[Prediction]:
    """The predictions of some rows, in the order of their numbers.

    Args:
        run: the run that answered.
        rows: what was answered.
        answers: the answer to each row, and its loss.
        scores: what each answer scores.
        name: that of the rows, as it is stored.
        with_text: whether predictions have what was asked and the right answer.
    """
    predictions = []
    for index, loss in enumerate(answers.losses):
        row_metrics = scores.by_row[index]
        prediction = Prediction(
            rows=name,
            row=index + 1,
            answer=None,
            loss=loss,
            metrics={} if rows.protocol.lengths else _null_if_not_finite(row_metrics),
        )
        # Plain text is cut into windows, which are no rows of the file and have no answer.
        if rows.form != "text":
            prediction = _with_answer(prediction, run, rows, answers, index, with_text=with_text)
        predictions.append(prediction)
    return sorted(predictions, key=lambda prediction: prediction.row)


def _null_if_not_finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as a file can hold them, since JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _with_answer(
    prediction: Prediction, run: Run, rows: Rows, answers: Answers, index: int, *, with_text: bool
) -> Prediction:
    """The prediction of a row with its number and answer, and the fields that only some have."""
    row = rows.rows[index]
    fields: dict[str, Any] = {"row": rows.number(index), "answer": answers.values[index]}
    if "group" in row:
        fields["group"] = row["group"]
    if answers.cut and answers.cut[index]:
        fields["cut"] = True
    if with_text:
        fields["text"] = _asked_text(row, rows, run)
        fields["right"] = right_answer(row, rows.form)
    return prediction.model_copy(update=fields)


def _asked_text(row: Row, rows: Rows, run: Run) -> str:
    """What a row asks, as one text."""
    if rows.form in HEADED:
        texts = [row["text"], row.get("text_pair")]
        return "\n".join(text for text in texts if text)
    prompt = prompt_of(row, rows.form, run.tokenizer)
    if rows.form != "choice":
        return prompt
    options = [f"{index}: {candidate}" for index, candidate in enumerate(row["candidates"])]
    return "\n".join([prompt, *options])
