"""Measures what a training made a model forget: its loss on a text that is like no training rows.

    loss of the adapted model − loss of its base, in nats per token; above 0 is forgotten

The text is ``neutral.txt`` beside this file: plain English prose, written for this purpose.
"""

from pathlib import Path
from typing import Any

import torch

from lorada.inference.evaluate import scoring
from lorada.inference.load import Run
from lorada.inference.perplexity import window_losses
from lorada.runs.data.dataset import context_of
from lorada.runs.folder.result import keep_forgetting
from lorada.runs.models.adapters import load_base
from lorada.runs.prepare import prepare
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.tasks.rows import HEADED
from lorada.tasks.tokenize import document_ids

TEXT = Path(__file__).with_name("neutral.txt")
LONGEST = 512  # tokens that are read at once


def forgetting(run: Run) -> dict[str, Any]:
    """Measure a run's mean loss on a neutral text, and keep it in its ``result.json``.

    The base of an adapter is the model with the adapter switched off. The base of a fully trained
    model is loaded beside it, which takes its memory once more.

    Returns:
        ``text``, the name of the text; ``base`` and ``adapted``, mean losses in nats per token,
        both None for a model that does not continue texts: an encoder, an encoder–decoder, or a
        decoder with the head of a classifier.

    Raises:
        ValueError: as ``load_base``, if the base of a fully trained model is no longer what it was.
    """
    found: dict[str, Any] = {"text": TEXT.name, "base": None, "adapted": None}
    if run.kind == "decoder" and run.form not in HEADED:
        ids = document_ids({"text": TEXT.read_text(encoding="utf-8")}, run.tokenizer)
        with scoring(run, base=False):
            found["adapted"] = text_loss(run.model, ids)
        found["base"] = _base_loss(run, ids)
    keep_forgetting(run.folder, found)
    return found


def _base_loss(run: Run, ids: list[int]) -> float | None:
    if (run.folder / "adapter").is_dir():
        with scoring(run, base=True):
            return text_loss(run.model, ids)
    trust = run.recipe.trust_remote_code
    recipe = saved_recipe(run.folder / RECIPE_FILE, trust_remote_code=trust)
    base = load_base(prepare(recipe)).model.eval().to(run.device)
    with torch.no_grad():
        return text_loss(base, ids)


def text_loss(model: Any, ids: list[int]) -> float | None:
    """The mean loss of a text's tokens in nats, read piece by piece.

    A piece has ``LONGEST`` tokens, or fewer if the model's context is shorter; the first token of
    each is not predicted.

    Args:
        model: a decoder.
        ids: the text's tokens; None is returned if there are fewer than two.
    """
    length = min(context_of(model.config) or LONGEST, LONGEST)
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, length):
        piece = torch.tensor([ids[start : start + length]], device=model.device)
        if (predicted := piece.shape[1] - 1) > 0:
            logits = model(input_ids=piece, use_cache=False).logits
            total += float(window_losses(logits, piece)) * predicted
            count += predicted
    return total / count if count else None
