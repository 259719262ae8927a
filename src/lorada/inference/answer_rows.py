"""Answers rows with a run: classes, numbers, candidates or texts; and the loss of right answers.

Rows of similar length share a batch, so that few pads are computed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from lorada.data.batches import IGNORED, collator, token_counts
from lorada.data.row_lengths import EncodingLog
from lorada.data.rows.rows import Rows
from lorada.data.scoring.metrics import THRESHOLD
from lorada.data.tokenize import context_of, encode_each, encode_options, encode_rows, prompts_of
from lorada.inference.generate import generate_parts, generation_settings
from lorada.inference.load import Run
from lorada.inference.perplexity import slide
from lorada.inference.stored_answers import Answers
from lorada.support.metric_names import LOSS
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED
from lorada.training.models.candidate_scores import (
    cached_scores,
    likeliest,
    needs_whole,
    sequence_scores,
)
from lorada.training.models.labelled_loss import LabelledLoss, find_labelled_loss

# Ranges of rows that are answered one after the other.
Parts = Sequence[range]
# Candidates are of one width if their lengths differ by less than about a fifth: 2^(1/4).
WIDTHS_IN_A_DOUBLING = 4


class RowAnswer(NamedTuple):
    """The answer to a row: a class, labels, a number, the index of a candidate, or a text.

    The loss is the training's of the right answer: cross-entropy, the mean over labels of their
    log-loss, squared error, or −log softmax(s) of the right candidate, s being the candidates'
    scores; None for a text.
    """

    value: Any
    loss: float | None = None
    probs: list[float] | None = None  # of the classes or labels, in their order
    cut: bool | None = None  # whether a text was cut at the most tokens of an answer


def answer_all(run: Run, rows: Rows) -> Answers:
    """The answers to all rows, in order, and the loss of each; that of choices is no metric."""
    if rows.protocol.lengths:
        windows, window_losses = slide(run, rows)
        return Answers(windows, window_losses, mean_loss={}, cut=None)
    if rows.form in HEADED or rows.form == "choice":
        answers = _in_order(answer_rows(run, rows))
        losses: list[Any] = [answer.loss for answer in answers]
        mean_loss = {LOSS: sum(losses) / len(losses)} if rows.form in HEADED else {}
        return Answers([answer.value for answer in answers], losses, mean_loss, cut=None)
    # The mean is over all tokens, so that a long response counts more than a short one.
    sums, counts = _summed_losses(run, rows)
    mean_loss = {LOSS: float(sums.sum() / counts.sum())}
    means = (sums / counts).tolist()
    if rows.form == "text":
        windows = list(zip(means, counts.int().tolist(), strict=True))
        return Answers(windows, means, mean_loss, cut=None)
    texts = _in_order(answer_rows(run, rows))
    return Answers(
        [text.value for text in texts],
        _losses_by_row(run, rows, means),
        mean_loss,
        [bool(text.cut) for text in texts],
    )


def _in_order(answers: Iterator[tuple[int, RowAnswer]]) -> list[RowAnswer]:
    """The answers in the order of the rows' indices."""
    by_index = dict(answers)
    return [by_index[index] for index in sorted(by_index)]


def _losses_by_row(run: Run, rows: Rows, means: list[float]) -> list[float | None]:
    """The mean loss of each row's response; None for a row that could not be encoded.

    A row whose right answer lies beyond max_length is answered, but has no loss. ``means`` are
    those of the encoded rows alone, in their order.
    """
    encoded_rows = list(range(len(rows.rows)))
    if len(means) < len(rows.rows):  # then they are encoded again, to see which were left out
        options = encode_options(rows, run.recipe, run.kind)
        encoding = encode_each(rows, run.tokenizer, options, EncodingLog())
        encoded_rows = [index for index, _ in encoding]
    loss_of = dict(zip(encoded_rows, means, strict=True))
    return [loss_of.get(index) for index in range(len(rows.rows))]


def answer_rows(
    run: Run, rows: Rows, parts: Parts | None = None
) -> Iterator[tuple[int, RowAnswer]]:
    """The indices of rows of some parts, of all if None, and the answer to each."""
    if rows.form == "choice":
        return _choose(run, rows, parts)
    if rows.form in HEADED:
        return _answer_by_head(run, rows, parts)
    return _answer_by_text(run, rows, parts)


def _choose(run: Run, rows: Rows, parts: Parts | None) -> Iterator[tuple[int, RowAnswer]]:
    """Answer each row with the candidate that has the highest score."""
    dataset = encode_rows(rows, run.recipe, run.tokenizer, run.kind, answered=True)
    score_candidates = sequence_scores if needs_whole(run.model) else cached_scores
    for indices, batch in _batches(run, rows, dataset, "Choosing", parts):
        groups = batch["groups"]  # how many candidates each row has
        scores = score_candidates(run.model, batch)
        row_scores = scores.split(groups.tolist())
        answers = zip(
            indices, likeliest(scores, groups), row_scores, batch["answers"].tolist(), strict=True
        )
        for index, candidate, candidate_scores, right in answers:
            loss = -float(candidate_scores.log_softmax(-1)[right])
            yield index, RowAnswer(candidate, loss)


def _answer_by_head(run: Run, rows: Rows, parts: Parts | None) -> Iterator[tuple[int, RowAnswer]]:
    """Answer each row with what a head says: a class, labels or a number."""
    dataset = encode_rows(rows, run.recipe, run.tokenizer, run.kind, answered=True)
    for indices, batch in _batches(run, rows, dataset, "Scoring", parts):
        right = batch.pop("labels")
        logits = run.model(**batch).logits.float()
        if rows.form == "label":
            answers = _class_answers(rows.labels, logits, right)
        elif rows.form == "labels":
            answers = _label_answers(rows.labels, logits, right)
        else:
            answers = _number_answers(logits, right)
        yield from zip(indices, answers, strict=True)


def _class_answers(classes: Sequence[str], logits: Tensor, right: Tensor) -> list[RowAnswer]:
    """The likeliest class of each row, from logits (B, classes) and the right indices (B,)."""
    likeliest_classes = [classes[index] for index in logits.argmax(-1).tolist()]
    losses = F.cross_entropy(logits, right, reduction="none").tolist()
    probs = logits.softmax(-1).tolist()
    return list(map(RowAnswer, likeliest_classes, losses, probs))


def _label_answers(labels: Sequence[str], logits: Tensor, right: Tensor) -> list[RowAnswer]:
    """The labels of each row that are as likely as not, or more.

    ``logits`` and ``right``, which has ones for the right labels, are (B, labels).
    """
    label_losses = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
    losses = label_losses.mean(-1).tolist()
    answers = []
    for probs, loss in zip(logits.sigmoid().tolist(), losses, strict=True):
        pairs = zip(labels, probs, strict=True)
        likely_labels = [label for label, prob in pairs if prob >= THRESHOLD]
        answers.append(RowAnswer(likely_labels, loss, probs))
    return answers


def _number_answers(logits: Tensor, right: Tensor) -> list[RowAnswer]:
    """The number of each row, from logits (B, 1) and the right numbers (B,)."""
    numbers = logits.flatten()
    losses = (numbers - right).square().tolist()
    return list(map(RowAnswer, numbers.tolist(), losses))


def _answer_by_text(run: Run, rows: Rows, parts: Parts | None) -> Iterator[tuple[int, RowAnswer]]:
    """Answer each row with the text that the model writes behind its prompt."""
    prompts = prompts_of(rows, run.tokenizer)
    # Rows of a user's own file have no generation settings; generate takes those of the task.
    protocol = rows.protocol if rows.protocol.generation else None
    settings = generation_settings(run, protocol=protocol)
    templated = rows.form == "messages"
    parts = parts or [range(len(prompts))]
    for index, text in generate_parts(run, prompts, parts, settings, templated=templated):
        yield index, RowAnswer(text.text, cut=text.cut)


def _batches(
    run: Run, rows: Rows, dataset: Dataset, title: str, parts: Parts | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of encoded rows of similar length, the longest first: their indices and tensors.

    With ``parts``, only their rows are in batches, and no batch has rows of two parts.
    """
    collate = collator(rows.form, run.tokenizer)
    batches = []
    for part in parts or [range(len(dataset))]:
        for positions in batches_by_length(dataset.select(part), run.recipe.eval_batch_size):
            batches.append([part[position] for position in positions])
    for indices in progress_bar(batches, title):
        batch = collate([dataset[index] for index in indices])
        yield indices, {name: tensor.to(run.device) for name, tensor in batch.items()}


def batches_by_length(dataset: Dataset, size: int) -> list[list[int]]:
    """The indices of rows, ``size`` together that need few pads, the longest first.

    The longest come first so that memory runs out at once if it does.
    """
    lengths = token_counts(dataset)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if "candidates" in dataset.column_names:
        order = _by_width_of_candidates(dataset, order)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return sorted(batches, key=lambda batch: -max(lengths[index] for index in batch))


def _by_width_of_candidates(dataset: Dataset, order: list[int]) -> list[int]:
    """The indices of rows, those with candidates of one width together.

    Candidates are padded by themselves, behind their prompts (``cached_scores``).
    """
    longest_candidate = [max(map(len, candidates)) for candidates in dataset["candidates"]]
    rows_by_width: dict[int, list[int]] = {}
    for index in order:
        width = round(WIDTHS_IN_A_DOUBLING * math.log2(longest_candidate[index]))
        rows_by_width.setdefault(width, []).append(index)
    new_order = []
    for turn, width in enumerate(sorted(rows_by_width)):
        rows = rows_by_width[width]
        # Down and up again, so that rows of two widths in a batch have prompts of similar length.
        if turn % 2 == 1:
            rows.reverse()
        new_order += rows
    return new_order


def _summed_losses(run: Run, rows: Rows) -> tuple[Tensor, Tensor]:
    """For each encoded row, in order: the sum of its tokens' losses in nats, and how many count."""
    dataset = encode_rows(
        rows, run.recipe, run.tokenizer, run.kind, reads=context_of(run.model.config)
    )
    return summed_losses(run, rows, dataset)


def summed_losses(run: Run, rows: Rows, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The same of a ``dataset`` that is encoded already, from rows of the form of ``rows``.

    Where the model's head is known, logits are made only for tokens that count, which takes a
    fraction of the memory; of other models all logits are made.
    """
    loss_and_count: dict[int, tuple[float, int]] = {}
    shift = 0 if run.kind == "encoder_decoder" else 1  # a decoder's logits are of the next token
    labelled_loss: LabelledLoss | None = None  # makes logits only where labels count
    for number, (indices, batch) in enumerate(_batches(run, rows, dataset, "Scoring")):
        if number == 0 and shift:
            labelled_loss = find_labelled_loss(run.model, batch)
        labels = batch["labels"][:, shift:]
        if labelled_loss is not None:
            token_losses, row_of, _ = labelled_loss(run.model, batch)
            sums = token_losses.new_zeros(len(indices)).index_add(0, row_of, token_losses)
        else:
            logits = run.model(**batch).logits[:, : labels.shape[1]].float().transpose(1, 2)
            token_losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
            sums = token_losses.sum(-1)
        counts = (labels != IGNORED).sum(-1)
        pairs = zip(sums.tolist(), counts.tolist(), strict=True)
        loss_and_count.update(zip(indices, pairs, strict=True))
    by_row = torch.tensor([loss_and_count[index] for index in range(len(loss_and_count))])
    return by_row[:, 0], by_row[:, 1]
