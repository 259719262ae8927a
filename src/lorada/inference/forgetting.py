"""Measures what a training made a model forget: its loss on a text that is like no training rows.

    loss of the adapted model − loss of its base, in nats per token; above 0 is forgotten

The text is ``neutral.txt`` beside this file: plain English prose, written for this purpose.
"""

from pathlib import Path
from typing import Any

import torch

from lorada.data.dataset import context_of
from lorada.data.tokenize import document_ids
from lorada.inference.evaluate import scoring
from lorada.inference.load import Run
from lorada.inference.perplexity import window_losses
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.runs.result import keep_forgetting
from lorada.support.row_sources import HEADED
from lorada.training.inputs import prepare
from lorada.training.models.adapters import load_base

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


def _base_loss(run: Run, ids: list[int]) -> float:
    if (run.folder / "adapter").is_dir():
        with scoring(run, base=True):
            return text_loss(run.model, ids)
    trust = run.recipe.trust_remote_code
    recipe = saved_recipe(run.folder / RECIPE_FILE, trust_remote_code=trust)
    base = load_base(prepare(recipe)).model.eval().to(run.device)
    with torch.no_grad():
        return text_loss(base, ids)


def text_loss(model: Any, ids: list[int]) -> float:
    """The mean loss of a text's tokens, of which there are several, in nats.

    A decoder reads pieces of ``LONGEST`` tokens, or fewer if its context is shorter; the first
    token of each is not predicted.
    """
    length = min(context_of(model.config) or LONGEST, LONGEST)
    text = torch.tensor([ids], device=model.device)
    pieces = [text[:, start : start + length] for start in range(0, len(ids) - 1, length)]
    total = 0.0
    for piece in pieces:
        logits = model(input_ids=piece, use_cache=False).logits
        total += float(window_losses(logits, piece)) * (piece.shape[1] - 1)
    return total / sum(piece.shape[1] - 1 for piece in pieces)
