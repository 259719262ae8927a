"""``lorada evaluate``: scores a finished run on held-out rows, or on the test rows of its tasks.

The metrics go into ``result.json``, and the answer to each row into ``predictions.jsonl``.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from lorada.data.metrics import THRESHOLD, refuse_metric, refuse_unnamed
from lorada.data.read_rows import answer_of
from lorada.data.row_forms import Columns
from lorada.data.row_lengths import EncodingLog
from lorada.data.score_answers import AnswerScores, are_own, metric_names_for, score_answers
from lorada.data.task import Metrics
from lorada.data.task_rows import Rows, rows_to_score, scored_rows
from lorada.data.tokenize import (
    IGNORED,
    collator,
    context_of,
    encode_each,
    encode_options,
    encode_rows,
    prompt_of,
    prompts_of,
    token_counts,
    written_calls,
)
from lorada.inference.generate import generate_parts, generation_settings
from lorada.inference.load import Run, scoring
from lorada.inference.perplexity import slide
from lorada.inference.stored_answers import Answers, conditions_of, hash_of, stored_answers
from lorada.runs.recipe import JSONL
from lorada.runs.result import (
    Prediction,
    RowsMetrics,
    keep_scores,
    read_predictions,
    read_result,
    write_predictions,
)
from lorada.support.metric_names import LOSS, LOSS_ROWS, as_score, rows_metric
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row, absolute_files
from lorada.training.models.candidate_scores import (
    cached_scores,
    likeliest,
    needs_whole,
    sequence_scores,
)
from lorada.training.models.labelled_loss import LabelledLoss, find_labelled_loss

BASE = " (base)"  # after the name of rows, for scores with the adapter switched off
# Ranges of rows that are answered one after the other.
Parts = Sequence[range]


def evaluate(
    run: Run,
    data: str | None = None,
    *,
    columns: Columns | None = None,
    base: bool = False,
    with_text: bool = False,
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
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
    return _score_all(run, {name: rows}, base=base, with_text=with_text, metrics=metrics)[name]


def evaluate_tasks(
    run: Run, data_dir: str | None = None, *, base: bool = False, with_text: bool = False
) -> dict[str, dict[str, Any]]:
    """Score a run on the test rows of its tasks and keep the numbers and answers in its folder.

    ``data_dir`` replaces the recipe's; ``base`` and ``with_text`` are as in ``evaluate``. Returned
    are the metrics by task, and by split if a task has two; a task's main metric comes first.
    """
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    sets = scored_rows(recipe, run.form, run.labels, run.kind)
    return _score_all(run, sets, base=base, with_text=with_text)


def has_tasks(run: Run) -> bool:
    """Whether a run learned benchmark tasks, which have test rows."""
    return run.recipe.task != JSONL


def _score_all(
    run: Run, sets: dict[str, Rows], *, base: bool, with_text: bool, metrics: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Score a run on sets of rows by name, and write metrics and answers into its folder."""
    read_predictions(run.folder)  # a damaged file is refused before the work, not after it
    scores = {}
    for name, rows in sets.items():
        key = f"{name}{BASE}" if base else name
        rows = written_calls(rows, run.tokenizer)
        by_windows = rows.form == "text"  # which are no answers to rows
        conditions = "" if by_windows else conditions_of(run, rows, base=base)
        stored = stored_answers(run, rows, key, conditions) if metrics and not by_windows else None
        with scoring(run, base=base):
            answers = stored or _answers_of(run, rows)
        found, predictions = score(run, rows, answers, key, metrics, with_text=with_text)
        count = len(rows.rows) if rows.protocol.lengths else len(predictions)
        scores[name] = {"n": count, **found, "sha256": rows.fingerprint}
        if not by_windows:
            scores[name]["answers_sha256"] = hash_of(conditions, predictions)
        asked = "unparsable" in found and not base
        unparsable = {name: found["unparsable"]} if asked else None
        # First the answers: where there are metrics, there are answers too.
        write_predictions(run.folder, key, predictions)
        keep_scores(run.folder, {key: RowsMetrics(**scores[name])}, unparsable)
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
    """The metrics of a run's answers to some rows, and its loss on them.

    Rows of a user's own are scored by ``metrics``, or by that of the run; others by their protocol.
    Returned besides are the predictions, in the order of the rows' numbers; ``name`` is that of the
    rows in them.
    """
    names = metric_names_for(rows, metrics or ([] if run.metric is None else [run.metric]))
    scores = score_answers(rows, answers.values, names)
    found = {**scores.metrics, **answers.mean}
    losses = [loss for loss in answers.losses if loss is not None]
    if LOSS in names and LOSS not in found:  # of choices, only where it is asked for
        found[LOSS] = sum(losses) / len(losses)
    shown = [Path(metric).name for metric in names]
    found = {**{name: found[name] for name in shown}, **found}
    if LOSS in found and rows.form != "text" and len(losses) < len(rows.rows):
        found[LOSS_ROWS] = len(losses)
    if are_own(rows) and answers.cut is not None:
        limit = generation_settings(run)["max_new_tokens"]
        found |= {"cut": sum(answers.cut), "max_new_tokens": limit}
    if run.commonest_answer is not None and (beside := _of_commonest(run, rows, names, found)):
        found["commonest"] = beside
    by = rows_metric(next(iter(found)))
    return found, _predictions(run, rows, answers, scores, by, name, with_text=with_text)


def _of_commonest(
    run: Run, rows: Rows, names: Sequence[str], beside: Metrics
) -> dict[str, Any] | None:
    """The commonest answer of the training rows, and what it scores, given to every row.

    It has no loss, and a constant has no correlation: None if nothing is defined for it. ``beside``
    are the metrics of the model.
    """
    answer = run.commonest_answer
    metrics = score_answers(rows, [answer] * len(rows.rows), names).metrics
    numbers = {
        name: value
        for name, value in metrics.items()
        if name in beside and isinstance(value, float) and name != "threshold"
    }
    return {"answer": answer, **numbers} if numbers else None


def _predictions(
    run: Run,
    rows: Rows,
    answers: Answers,
    scores: AnswerScores,
    by: str,
    name: str,
    *,
    with_text: bool,
) -> list[Prediction]:
    """The predictions of some rows, in the order of their numbers.

    Args:
        run: the run that answered.
        rows: what was answered.
        answers: the answer to each row, and its loss.
        scores: what each answer scores.
        by: the metric of single rows that gives the score.
        name: that of the rows, as it is stored.
        with_text: whether predictions have what was asked and the right answer.
    """
    predictions = []
    for index, loss in enumerate(answers.losses):
        row_metrics = scores.by_row[index]
        value = row_metrics.get(LOSS, loss) if by == LOSS else row_metrics[by]
        is_window = rows.form == "text"  # into which the texts are cut, so it is no row of the file
        prediction = Prediction(
            rows=name,
            row=index + 1 if is_window else rows.number(index),
            answer=None if is_window else answers.values[index],
            score=None if value is None else as_score(value, by),
            loss=loss,
            metrics={} if rows.protocol.lengths else _null_if_not_finite(row_metrics),
        )
        if not is_window:
            prediction = _with_further(prediction, run, rows, answers, index, with_text=with_text)
        predictions.append(prediction)
    return sorted(predictions, key=lambda prediction: prediction.row)


def _null_if_not_finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as a file can hold them, since JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _with_further(
    prediction: Prediction, run: Run, rows: Rows, answers: Answers, index: int, *, with_text: bool
) -> Prediction:
    """A prediction with the fields that only some rows have."""
    row = rows.rows[index]
    further: dict[str, Any] = {}
    if "group" in row:
        further["group"] = row["group"]
    if answers.cut and answers.cut[index]:
        further["cut"] = True
    if with_text:
        further |= _text_of(row, rows.form, run)
    return prediction.model_copy(update=further)


def _text_of(row: Row, form: Form, run: Run) -> dict[str, Any]:
    """What a row asks, as one text, and the right answer."""
    if form in HEADED:
        text = "\n".join(filter(None, (row["text"], row.get("text_pair"))))
        right = {"label": str, "labels": list, "score": float}[form](row[form])
        return {"text": text, "right": right}
    text = prompt_of(row, form, run.tokenizer)
    if form == "choice":
        options = (f"{index}: {one}" for index, one in enumerate(row["candidates"]))
        return {"text": "\n".join([text, *options]), "right": row["answer"]}
    return {"text": text, "right": answer_of(row)}


def _batches(
    run: Run, rows: Rows, dataset: Dataset, title: str, parts: Parts | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of encoded rows of similar length, the longest first: their indices and tensors.

    With ``parts``, only their rows are in batches, and no batch has rows of two parts.
    """
    pad, size = collator(rows.form, run.tokenizer), run.recipe.eval_batch_size
    batches = [
        [part[i] for i in chosen]
        for part in parts or [range(len(dataset))]
        for chosen in alike(dataset.select(part), size)
    ]
    for chosen in progress_bar(batches, title):
        batch = pad([dataset[i] for i in chosen])
        yield chosen, {key: tensor.to(run.device) for key, tensor in batch.items()}


def alike(dataset: Dataset, size: int) -> list[list[int]]:
    """The indices of rows, ``size`` together that need few pads, the longest first."""
    lengths = token_counts(dataset)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if "candidates" in dataset.column_names:
        # Candidates are padded by themselves, behind their prompts (``cached_scores``).
        widest = [max(map(len, candidates)) for candidates in dataset["candidates"]]
        widths: dict[int, list[int]] = {}
        for i in order:
            widths.setdefault(round(4 * math.log2(widest[i])), []).append(i)
        # Down and up again, so that rows of two widths in one batch have prompts of alike length.
        turns = enumerate(sorted(widths))
        order = [i for turn, width in turns for i in widths[width][:: (-1) ** turn]]
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return sorted(chunks, key=lambda chosen: -max(lengths[i] for i in chosen))


class Answered(NamedTuple):
    """The answer to a row: a class, labels, a number, the index of a candidate, or a text.

    The loss is the training's of the right answer: cross-entropy, the mean over labels of their
    log-loss, squared error, or −log softmax(s) of the right candidate, s being the candidates'
    scores; None for a text.
    """

    value: Any
    loss: float | None = None
    probs: list[float] | None = None  # of the classes or labels, in their order
    cut: bool | None = None  # whether a text was cut at the most tokens of an answer


def answer_rows(run: Run, rows: Rows, parts: Parts | None = None) -> Iterator[tuple[int, Answered]]:
    """The indices of rows of some parts, of all if None, and the answer to each."""
    if rows.form == "choice" or rows.form in HEADED:
        encoded = encode_rows(rows, run.recipe, run.tokenizer, run.kind, answered=True)
    if rows.form == "choice":
        scores_of = sequence_scores if needs_whole(run.model) else cached_scores
        for chosen, batch in _batches(run, rows, encoded, "Choosing", parts):
            scores, groups = scores_of(run.model, batch), batch["groups"]
            each = zip(scores.split(groups.tolist()), batch["answers"].tolist(), strict=True)
            losses = [-float(s.log_softmax(-1)[answer]) for s, answer in each]
            found = map(Answered, likeliest(scores, groups), losses)
            yield from zip(chosen, found, strict=True)
    elif rows.form in HEADED:
        for chosen, batch in _batches(run, rows, encoded, "Scoring", parts):
            right = batch.pop("labels")
            logits = run.model(**batch).logits.float()
            yield from zip(chosen, _headed_answers(rows, logits, right), strict=True)
    else:
        prompts = prompts_of(rows, run.tokenizer)
        # Rows of a user's own file have no generation settings; generate takes those of the task.
        protocol = rows.protocol if rows.protocol.generation else None
        settings = generation_settings(run, protocol=protocol)
        templated = rows.form == "messages"
        parts = parts or [range(len(prompts))]
        for index, text in generate_parts(run, prompts, parts, settings, templated=templated):
            yield index, Answered(text.text, cut=text.cut)


def _headed_answers(rows: Rows, logits: Tensor, right: Tensor) -> Iterator[Answered]:
    """The answers of a head to a batch; ``right`` are the labels or numbers that it learns."""
    if rows.form == "label":
        values = [rows.labels[i] for i in logits.argmax(-1).tolist()]
        losses = F.cross_entropy(logits, right, reduction="none").tolist()
        return map(Answered, values, losses, logits.softmax(-1).tolist())
    if rows.form == "labels":
        by_label = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
        probs = logits.sigmoid().tolist()
        sets = [_likely(rows.labels, shares) for shares in probs]
        return map(Answered, sets, by_label.mean(-1).tolist(), probs)
    losses = (logits.flatten() - right).square().tolist()
    return map(Answered, logits.flatten().tolist(), losses)


def _likely(names: Sequence[str], probs: list[float]) -> list[str]:
    """The labels of a text: those that are as likely as not, or more."""
    return [name for name, prob in zip(names, probs, strict=True) if prob >= THRESHOLD]


def _answers_of(run: Run, rows: Rows) -> Answers:
    """The answers to all rows, in order; the loss of a choice is no metric."""
    if rows.protocol.lengths:
        return Answers(*slide(run, rows), {}, None)
    if rows.form in HEADED or rows.form == "choice":
        found: list[Any] = [one for _, one in sorted(answer_rows(run, rows))]
        losses = [one.loss for one in found]
        mean = {"loss": sum(losses) / len(losses)} if rows.form in HEADED else {}
        return Answers([one.value for one in found], losses, mean, None)
    sums, counts = _losses(run, rows)
    means, loss = (sums / counts).tolist(), {"loss": float(sums.sum() / counts.sum())}
    if rows.form == "text":
        return Answers([*zip(means, counts.int().tolist(), strict=True)], means, loss, None)
    found = [one for _, one in sorted(answer_rows(run, rows))]
    # A row whose right answer lies beyond max_length is answered, but has no loss.
    kept: Iterable[int] = range(len(rows.rows))
    if len(means) < len(rows.rows):
        options = encode_options(rows, run.recipe, run.kind)
        kept = [index for index, _ in encode_each(rows, run.tokenizer, options, EncodingLog())]
    by_row = dict(zip(kept, means, strict=True))
    losses = [by_row.get(index) for index in range(len(rows.rows))]
    cut = [bool(one.cut) for one in found]
    return Answers([one.value for one in found], losses, loss, cut)


def _losses(run: Run, rows: Rows) -> tuple[Tensor, Tensor]:
    """For each encoded row, in order: the sum of its tokens' losses in nats, and how many count."""
    found: dict[int, tuple[float, int]] = {}
    shift = 0 if run.kind == "encoder_decoder" else 1  # a decoder's logits are of the next token
    sparing: LabelledLoss | None = None  # makes logits only where labels count
    reads = context_of(run.model.config)
    dataset = encode_rows(rows, run.recipe, run.tokenizer, run.kind, reads=reads)
    for number, (chosen, batch) in enumerate(_batches(run, rows, dataset, "Scoring")):
        if number == 0 and shift:
            sparing = find_labelled_loss(run.model, batch)
        labels = batch["labels"][:, shift:]
        if sparing is not None:
            each, row_of, _ = sparing(run.model, batch)
            sums = each.new_zeros(len(chosen)).index_add(0, row_of, each)
        else:
            logits = run.model(**batch).logits[:, : labels.shape[1]].float().transpose(1, 2)
            each = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
            sums = each.sum(-1)
        pairs = zip(sums.tolist(), (labels != IGNORED).sum(-1).tolist(), strict=True)
        found.update(zip(chosen, pairs, strict=True))
    by_row = torch.tensor([found[index] for index in range(len(found))])
    return by_row[:, 0], by_row[:, 1]
