"""Scores are learned as standard deviations from their mean, and saved in the rows' own unit.

    learned: (score − mean) / sd        saved: sd·W and sd·b + mean, of the head's last layer

So grades from 1 to 5 and the same grades from 1000 to 5000 are one training. The losses of a
training are those of what is learned. The head of a decoder has no bias in transformers, so nothing
could hold the mean: there the mean stays in the scores, and the head begins with weights that
answer the mean of all scores.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from lorada.methods.task_head import PEFT_NAMES
from lorada.runs.data.rows import Rows
from lorada.runs.prepare import PreparedTraining
from lorada.support.processes import is_first

logger = logging.getLogger(__name__)

SMALL = 1e-3  # singular values below this share of the largest are noise
TRAINED_COPY, ORIGINAL = "modules_to_save.default", "original_module"  # of a head, in PEFT's models


@dataclass(frozen=True)
class ScoreScale:
    """How scores are learned.

    Attributes:
        layer: the name of the head's last layer.
        mean: what is subtracted from a score.
        sd: what a score is then divided by.
    """

    layer: str
    mean: float
    sd: float

    def learned(self, prepared: PreparedTraining) -> PreparedTraining:
        """The rows of a training with scores as they are learned."""
        held_out = prepared.held_out
        return replace(
            prepared,
            rows=self._learned(prepared.rows),
            held_out=None if held_out is None else self._learned(held_out),
        )

    def _learned(self, rows: Rows) -> Rows:
        each = ((row, (float(row["score"]) - self.mean) / self.sd) for row in rows.rows)
        return replace(rows, rows=[{**row, "score": score} for row, score in each])

    def own(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the head's last layer among those of a model, as they are learned."""
        names = (f"{self.layer}.{name}" for name in ("weight", "bias"))
        return {name: weights[name] for name in names if name in weights}

    def saved(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a model, for outputs in the unit of the scores."""
        found = dict(weights)
        for name, weight in self.own(weights).items():
            shift = self.mean if name.endswith("bias") else 0.0
            found[name] = (weight.double() * self.sd + shift).to(weight.dtype)
        return found

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Make the outputs of a trained model scores in their own unit."""
        weights = self.own(dict(model.named_parameters()))
        for name, weight in self.saved(weights).items():
            weights[name].copy_(weight)

    @torch.no_grad()
    def unfold(self, model: nn.Module) -> None:
        """Make the outputs of a model whose head knows scores those that are learned."""
        for name, weight in self.own(dict(model.named_parameters())).items():
            shift = self.mean if name.endswith("bias") else 0.0
            weight.copy_((weight.double() - shift) / self.sd)


def scale_of(rows: Rows, model: nn.Module) -> ScoreScale | None:
    """How the scores of training rows are learned by a model; None for rows of another form.

    Raises:
        ValueError: for scores that are all the same, from which nothing can be learned.
    """
    if rows.form != "score":
        return None
    scores = [float(row["score"]) for row in rows.rows]
    if min(scores) == max(scores):
        raise ValueError(
            f"{rows.path} has only the score {scores[0]:g}: nothing can be learned from it"
        )
    layer = _last_layer(model)
    holds_mean = model.get_submodule(layer).bias is not None
    scale = ScoreScale(layer, fmean(scores) if holds_mean else 0.0, pstdev(scores))
    if is_first():
        logger.warning("scores are learned as (score − %g) / %g, their standard deviation: losses "
                       "while training are of these", scale.mean, scale.sd)  # fmt: skip
    return scale


def _last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the scores: the last linear one with one output."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and ORIGINAL not in name
    ][-1]


def begin(
    scale: ScoreScale, model: nn.Module, drawn: Iterable[str], batch: Mapping[str, Tensor]
) -> ScoreScale:
    """Put the head of a model that begins to train where scores are learned.

    Args:
        scale: how they are, for the base.
        model: the model with its method.
        drawn: names of the base's parameters that were drawn at random.
        batch: some of the training rows, with scores as they are learned.

    Returns:
        How they are for this model.
    """
    scale = replace(scale, layer=_last_layer(model))
    layer = model.get_submodule(scale.layer)
    original = model.get_submodule(scale.layer.replace(TRAINED_COPY, ORIGINAL))
    name = scale.layer.removeprefix(PEFT_NAMES).replace(f".{TRAINED_COPY}", "")
    if f"{name}.weight" not in drawn or not torch.equal(layer.weight, original.weight):
        scale.unfold(model)  # the head comes from the checkpoint, or from the adapter of --from
    elif layer.bias is None:
        _begin_at_the_mean(layer, model.eval(), dict(batch))
    return scale


@torch.no_grad()
def _begin_at_the_mean(layer: nn.Module, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Add the mean score to the outputs of a new last layer W without a bias.

    W gets mean·v with the least v for which v·h = 1 in every row of the batch. h (D,) is what the
    layer reads of a row.
    """
    device = layer.weight.device
    mean = batch.pop("labels").double().mean().item()
    # In place of its outputs the layer gives its inputs, of which the model takes the last token's.
    hook = layer.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        features = model(**{name: value.to(device) for name, value in batch.items()}).logits
    finally:
        hook.remove()
    features = features.double().cpu()
    same = torch.linalg.pinv(features, rtol=SMALL).sum(-1)
    layer.weight += (mean * same).to(layer.weight)
