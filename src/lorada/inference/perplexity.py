"""Losses of windows that slide over long texts, as in Chen et al., "LongLoRA" (2023)."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.data.benchmarks.long_sequence import Losses, window_starts
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import context_of, document_ids
from lorada.inference.load import Run
from lorada.support.progress import progress_bar

logger = logging.getLogger(__name__)

TOKENS = 2048  # tokens in a batch of windows; a longer window is a batch alone
SLICE = 512  # positions with logits in fp32 at a time: 8192 would fill a gigabyte


def slide(run: Run, rows: Rows) -> tuple[list[Losses], list[float]]:
    """Mean losses of windows of a run's texts: by context length, and all in order."""
    lengths = _lengths(run, rows)
    token_ids: list[int] = []
    for row in rows.rows:  # the texts are joined, so that windows go on over their ends
        token_ids += document_ids(row, run.tokenizer)
    stream = torch.tensor(token_ids)
    losses_by_length: list[Losses] = []
    all_losses: list[float] = []
    for length in lengths:
        starts = window_starts(len(stream), length, rows.protocol.stride, run.recipe.eval_windows)
        batch_size = max(1, min(run.recipe.eval_batch_size, TOKENS // length))
        batches = []
        for first in range(0, len(starts), batch_size):
            batches.append(starts[first : first + batch_size])
        losses: list[float] = []
        for batch_starts in progress_bar(batches, f"Windows of {length}"):
            windows = [stream[start : start + length] for start in batch_starts]
            ids = torch.stack(windows).to(run.device)
            # Every window is full, so there are no pads and no mask.
            logits = run.model(input_ids=ids, use_cache=False).logits
            losses += window_losses(logits, ids).tolist()
        losses_by_length.append((length, losses))
        all_losses += losses
    return losses_by_length, all_losses


def _lengths(run: Run, rows: Rows) -> list[int]:
    """The context lengths to score: the recipe's, or those of the protocol that fit the model.

    Lengths beyond the model's context are left out with a warning; if all are, that is an error.

    Raises:
        ValueError: if the model's context is shorter than all of them.
    """
    # Those of the recipe were checked when the run was loaded.
    lengths = run.recipe.eval_lengths or list(rows.protocol.lengths)
    context = context_of(run.model.config)
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
    """The mean loss (B,) of each window in nats a token, over all its tokens except the first.

    ``logits`` are (B, T, vocabulary), ``ids`` (B, T). The losses are in fp64 on the CPU, since not
    every device has fp64.
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
