"""Scores are learned as standard deviations from their mean, and saved in the rows' own unit.

    learned: (score − mean) / sd        saved: sd·W and sd·b + mean, of the head's last layer

So grades from 1 to 5 and the same grades from 1000 to 5000 are one training. The losses of a
training are those of what is learned. The head of a decoder has no bias in transformers, and so
nothing that could hold the mean: there scores are only divided.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.runs.data.rows import Rows
from lorada.runs.prepare import PreparedTraining
from lorada.support.processes import is_first

logger = logging.getLogger(__name__)

FAR = 10  # standard deviations from 0 beyond which a head without a bias learns scores poorly
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
    mean, sd = fmean(scores), pstdev(scores)
    biased = model.get_submodule(layer).bias is not None
    scale = ScoreScale(layer, mean if biased else 0.0, sd)
    if not biased and abs(mean) > FAR * sd and is_first():
        logger.warning("the scores are %.0f standard deviations from 0, and the head of this model "
                       "has no bias to hold their mean: subtract %g from them, or take an encoder",
                       abs(mean) / sd, mean)  # fmt: skip
    if is_first():
        logger.warning("scores are learned as (score − %g) / %g, their standard deviation: losses "
                       "while training are of these", scale.mean, scale.sd)  # fmt: skip
    return scale


def _last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the scores: the last linear one with one output."""
    return [
        str(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and ORIGINAL not in name
    ][-1]


@torch.no_grad()
def begin(
    scale: ScoreScale, model: nn.Module, drawn: Iterable[str], batch: dict[str, Tensor]
) -> ScoreScale:
    """Turn a head that knows scores in the unit of the rows into one of what is learned.

    A head may also be new, or know scores in another unit: it begins as it is. Which it is, is
    decided by which of the two answers a batch better.

    Args:
        scale: how scores are learned, for the base.
        model: the model with its method.
        drawn: names of the base's parameters that were drawn at random.
        batch: some of the training rows, with scores as they are learned.

    Returns:
        How scores are learned, for the model.
    """
    name, scale = scale.layer, replace(scale, layer=_last_layer(model))
    original = model.get_parameter(f"{scale.layer.replace(TRAINED_COPY, ORIGINAL)}.weight")
    own = model.get_parameter(f"{scale.layer}.weight")
    if f"{name}.weight" in drawn and torch.equal(own, original):
        return scale
    inputs = {key: value.to(own.device) for key, value in batch.items()}
    right = inputs.pop("labels")
    answers = model.eval()(**inputs).logits.flatten()
    if F.mse_loss((answers - scale.mean) / scale.sd, right) < F.mse_loss(answers, right):
        for key, weight in scale.own(dict(model.named_parameters())).items():
            shift = scale.mean if key.endswith("bias") else 0.0
            weight.copy_((weight.double() - shift) / scale.sd)
    return scale
