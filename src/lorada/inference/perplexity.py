"""Losses of windows that slide over long texts, for perplexity; Chen et al., "LongLoRA" (2023)."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.data.benchmarks.long_sequence import Losses, window_starts
from lorada.data.dataset import context_of
from lorada.data.metrics import Metrics
from lorada.data.task_rows import Rows
from lorada.data.tokenize import document_ids
from lorada.inference.load import Run
from lorada.support.progress import progress_bar

logger = logging.getLogger(__name__)

TOKENS = 2048  # tokens in a batch of windows; a longer window is a batch alone
SLICE = 512  # positions with logits in fp32 at a time: 8192 would fill a gigabyte


def slide(run: Run, rows: Rows) -> tuple[list[Losses], list[float], Metrics]:
    """The mean loss of each window of a run's texts: by context length, and all of them in order.

    Raises:
        ValueError: if no context length fits the model, or the texts are too short for one.
    """
    lengths = _lengths(run, rows)
    stream = torch.tensor([i for row in rows.rows for i in document_ids(row, run.tokenizer)])
    answers: list[Losses] = []
    for length in lengths:
        starts = window_starts(len(stream), length, rows.protocol.stride, run.recipe.eval_windows)
        size = max(1, min(run.recipe.eval_batch_size, TOKENS // length))
        chunks = [starts[first : first + size] for first in range(0, len(starts), size)]
        losses: list[float] = []
        for chunk in progress_bar(chunks, f"Windows of {length}"):
            ids = torch.stack([stream[start : start + length] for start in chunk]).to(run.device)
            # Every window is full, so there are no pads and no mask.
            logits = run.model(input_ids=ids, use_cache=False).logits
            losses += window_losses(logits, ids).tolist()
        answers.append((length, losses))
    return answers, [loss for _, losses in answers for loss in losses], {}


def _lengths(run: Run, rows: Rows) -> list[int]:
    """The context lengths to score: the recipe's, or those of the protocol that fit the model."""
    if run.recipe.eval_lengths:  # checked when the run was loaded
        return run.recipe.eval_lengths
    lengths, context = list(rows.protocol.lengths), context_of(run.model.config)
    fitting = [length for length in lengths if context is None or length <= context]
    if not fitting:
        raise ValueError(
            f"the model's context of {context} tokens is shorter than {min(lengths)}: train with "
            "eval_lengths=[…] that fit, or a rope_factor"
        )
    if fitting != lengths:
        shown = ", ".join(str(length) for length in lengths[len(fitting) :])
        logger.warning("not scored at %s tokens: the model's context is %d", shown, context)
    return fitting


def window_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean loss of each window, over all its tokens except the first.

    Args:
        logits: (B, T, vocabulary).
        ids: (B, T).

    Returns:
        (B,) in fp64 on the CPU, since not every device has fp64; in nats a token.
    """
    predicted = ids.shape[1] - 1
    total = torch.zeros(len(ids), dtype=torch.float64)
    for start in range(0, predicted, SLICE):
        stop = min(start + SLICE, predicted)
        piece = logits[:, start:stop].float().transpose(1, 2)
        targets = ids[:, start + 1 : stop + 1].to(logits.device)
        losses = F.cross_entropy(piece, targets, reduction="none")
        total += losses.cpu().sum(-1, dtype=torch.float64)
    return total / predicted
