"""``lorada evaluate``: scores a finished run on held-out rows, or on the test rows of its tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from lorada.runs.data.dataset import collator, encode_options, encode_rows, lengths_of
from lorada.runs.data.rows import JSONL, Rows, load_rows, sampled, scored_rows
from lorada.runs.folder.result import keep_scores
from lorada.runs.inference.generate import generate
from lorada.runs.inference.load import Run
from lorada.runs.inference.perplexity import slide
from lorada.runs.models.candidate_scores import (
    cached_scores,
    likeliest,
    needs_whole,
    sequence_scores,
)
from lorada.support.progress import progress_bar
from lorada.tasks.metrics import Metrics
from lorada.tasks.rows import Form
from lorada.tasks.tokenize import IGNORED, prompt_of

Answers = tuple[list[Any], Metrics]  # the model's answer to each row, and its loss if measured


def evaluate(run: Run, data: str | None = None, *, base: bool = False) -> dict[str, Any]:
    """Score a run on a file of held-out rows and keep the numbers in its ``result.json``.

    The file is ``data`` or the recipe's ``eval_data``. If the recipe has ``eval_rows``, so many of
    the rows are scored, at random. ``base`` scores the model with the adapter switched off.

    Returns:
        The metrics, such as ``loss`` and ``exact_match`` or ``accuracy`` in percent, with ``n``.

    Raises:
        ValueError: if there are no rows or they have another form than the run's, or for ``base``
            with a run without an adapter.
    """
    rows = load_rows(data or run.recipe.eval_data, run.form, run.labels)
    rows = sampled(rows, run.recipe.eval_rows)
    return _score_all(run, {rows.path: rows}, base=base)[rows.path]


def evaluate_tasks(
    run: Run, data_dir: str | None = None, *, base: bool = False
) -> dict[str, dict[str, Any]]:
    """Score a run on the test rows of its tasks and keep the numbers in its ``result.json``.

    ``data_dir`` replaces the recipe's; ``base`` is as in ``evaluate``.

    Returns:
        The metrics by task, and by split if a task has two; a task's main metric comes first.

    Raises:
        ValueError: as ``evaluate`` does.
        FileNotFoundError: if the rows are not there.
    """
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    return _score_all(run, scored_rows(recipe, run.form, run.labels, run.kind), base=base)


def has_tasks(run: Run) -> bool:
    """Whether a run learned benchmark tasks, which have test rows."""
    return run.recipe.task != JSONL


def _score_all(run: Run, sets: dict[str, Rows], *, base: bool) -> dict[str, dict[str, Any]]:
    """Score a run on sets of rows by name, and write the metrics into its ``result.json``."""
    found = {}
    for name, rows in sets.items():
        with scoring(run, base=base):
            scores = score(run, rows)
        found[name] = {"n": len(rows.rows), **scores, "sha256": rows.fingerprint}
        asked = "unparsable" in scores and not base
        unparsable = {name: scores["unparsable"]} if asked else None
        keep_scores(run.folder, {f"{name}{' (base)' if base else ''}": found[name]}, unparsable)
    return found


@contextmanager
def scoring(run: Run, *, base: bool) -> Iterator[None]:
    """Switch gradients off in a ``with`` block, and the adapter too if the base is to be scored.

    Raises:
        ValueError: if there is no adapter to switch off, or the base's head was drawn at random.
    """
    if base and not isinstance(run.model, PeftModel):
        raise ValueError(
            "this run trained the base model itself: there is no adapter to switch off"
        )
    if base and run.drawn:
        raise ValueError(
            f"--base: {run.recipe.model} has no {min(run.drawn)}, which is drawn anew at each load,"
            " so scores of the base would be random: leave out --base"
        )
    with run.model.disable_adapter() if base else nullcontext(), torch.no_grad():
        yield


def score(run: Run, rows: Rows) -> Metrics:
    """The metrics of a run's answers to some rows, by the rows' protocol, and its loss on them."""
    by_form: dict[Form, Callable[[Run, Rows], Answers]] = {
        "label": _classify,
        "score": _classify,
        "choice": _choose,
        "prompt": _write,
        "messages": _write,
        "text": _read,
    }
    answer = slide if rows.protocol.lengths else by_form[rows.form]
    answers, losses = answer(run, rows)
    return {**rows.protocol.score(answers, rows.rows), **losses}


def _batches(
    run: Run, rows: Rows, title: str, *, answered: bool
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of similar length, the longest first: the rows' indices, and their tensors.

    If every row has to be ``answered``, none may be left out.
    """
    dataset = encode_rows(rows, run.recipe, run.tokenizer, run.kind, answered=answered)
    pad = collator(rows.form, run.tokenizer)
    lengths = lengths_of(dataset)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    size = run.recipe.eval_batch_size
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    for chosen in progress_bar(chunks, title):
        batch = pad([dataset[i] for i in chosen])
        yield chosen, {key: tensor.to(run.device) for key, tensor in batch.items()}


def _in_order(answers: dict[int, Any]) -> list[Any]:
    """Answers by the index of their row, as a list."""
    return [answers[i] for i in range(len(answers))]


def _classify(run: Run, rows: Rows) -> Answers:
    """The likeliest class of each row, or its score."""
    answers: dict[int, Any] = {}
    total = 0.0
    for chosen, batch in _batches(run, rows, "Scoring", answered=True):
        output = run.model(**batch)
        total += float(output.loss) * len(chosen)
        if rows.form == "label":
            found = [rows.labels[i] for i in output.logits.argmax(-1).tolist()]
        else:
            found = output.logits.flatten().tolist()
        answers.update(zip(chosen, found, strict=True))
    return _in_order(answers), {"loss": total / len(answers)}


def _choose(run: Run, rows: Rows) -> Answers:
    """The index of the likeliest candidate of each row."""
    scores_of = sequence_scores if needs_whole(run.model) else cached_scores
    answers: dict[int, int] = {}
    for chosen, batch in _batches(run, rows, "Choosing", answered=True):
        best = likeliest(scores_of(run.model, batch), batch["groups"])
        answers.update(zip(chosen, best, strict=True))
    return _in_order(answers), {}


def _write(run: Run, rows: Rows) -> Answers:
    """The text that the model writes for each row, and its loss per token of the right answers."""
    sums, counts = _losses(run, rows)
    room = encode_options(rows, run.recipe, run.kind).prompt_room
    prompts = [prompt_of(row, rows.form, run.tokenizer, room) for row in rows.rows]
    # Rows of a user's own file have no generation settings; generate takes those of the run's task.
    protocol = rows.protocol if rows.protocol.generation else None
    answers = generate(run, prompts, templated=rows.form == "messages", protocol=protocol)
    return answers, {"loss": float(sums.sum() / counts.sum())}


def _read(run: Run, rows: Rows) -> Answers:
    """The mean loss of each window of text, and the mean loss of all tokens."""
    sums, counts = _losses(run, rows)
    return (sums / counts).tolist(), {"loss": float(sums.sum() / counts.sum())}


def _losses(run: Run, rows: Rows) -> tuple[Tensor, Tensor]:
    """For each encoded row, in order: the sum of its tokens' losses in nats, and how many count."""
    found: dict[int, tuple[float, int]] = {}
    shift = 0 if run.kind == "encoder_decoder" else 1  # a decoder's logits are of the next token
    for chosen, batch in _batches(run, rows, "Scoring", answered=False):
        labels = batch["labels"][:, shift:]
        logits = run.model(**batch).logits[:, : labels.shape[1]].float()
        each = F.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        sums, counts = each.sum(-1).tolist(), (labels != IGNORED).sum(-1).tolist()
        found.update(zip(chosen, zip(sums, counts, strict=True), strict=True))
    by_row = torch.tensor(_in_order(found))
    return by_row[:, 0], by_row[:, 1]
