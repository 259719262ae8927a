"""Scores are learned as standard deviations from their mean, and saved in the rows' own unit.

    learned: (score − mean) / sd        saved: sd·W and sd·b + mean, of the head's last layer

So grades from 1 to 5 and the same grades from 1000 to 5000 are one training. The losses of a
training are those of what is learned. The head of a decoder has no bias in transformers, and so
nothing that could hold the mean: there scores are only divided.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from lorada.data.task_rows import Rows
from lorada.support.processes import is_first

logger = logging.getLogger(__name__)

FAR = 10  # standard deviations from 0 beyond which a head without a bias learns scores poorly
TRAINED_COPY, ORIGINAL = "modules_to_save.default", "original_module"  # of a head, in PEFT's models


@dataclass(frozen=True)
class ScoreScale:
    """How scores are learned: without their ``mean``, over ``sd``, by the head's last ``layer``."""

    layer: str
    mean: float
    sd: float

    def learned(self, rows: Rows) -> Rows:
        """Rows with scores as they are learned."""
        each = ((row, (float(row["score"]) - self.mean) / self.sd) for row in rows.rows)
        return replace(rows, rows=[{**row, "score": score} for row, score in each])

    def own(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the head's last layer among those of a model, as they are learned."""
        names = (f"{self.layer}.{name}" for name in ("weight", "bias"))
        return {name: weights[name] for name in names if name in weights}

    def saved(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a model, for outputs in the unit of the rows."""
        found = dict(weights)
        for name, weight in self.own(weights).items():
            shift = self.mean if name.endswith("bias") else 0.0
            found[name] = (weight.double() * self.sd + shift).to(weight.dtype)
        return found

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Make a model that has learned answer in the unit of the rows."""
        own = self.own(dict(model.named_parameters()))
        for name, weight in self.saved(own).items():
            own[name].copy_(weight)

    def begin(self, model: nn.Module, drawn: Collection[str]) -> "ScoreScale":
        """How a model learns scores whose base learns them so; ``drawn`` is as in ``Base``.

        A head from a checkpoint, or from the adapter of ``--from``, answers in the unit of the rows
        and is put where scores are learned, so that the model begins as what it was.
        """
        placed = replace(self, layer=_last_layer(model))
        original = model.get_parameter(f"{placed.layer.replace(TRAINED_COPY, ORIGINAL)}.weight")
        own = model.get_parameter(f"{placed.layer}.weight")
        if f"{self.layer}.weight" not in drawn or not torch.equal(own, original):
            replace(placed, mean=-self.mean / self.sd, sd=1 / self.sd).fold(model)
        return placed


def scale_of(rows: Rows, base: nn.Module) -> ScoreScale | None:
    """How the scores of training rows are learned on a base; None for rows of another form."""
    if rows.form != "score":
        return None
    scores = [float(row["score"]) for row in rows.rows]
    mean, sd, layer = fmean(scores), pstdev(scores), _last_layer(base)
    if min(scores) == max(scores):
        raise ValueError(f"{rows.path} has only the score {mean:g}: nothing can be learned from it")
    biased = base.get_submodule(layer).bias is not None
    if not biased and abs(mean) > FAR * sd and is_first():
        logger.warning("the scores are %.0f standard deviations from 0, and the head of this model "
                       "has no bias to hold their mean: subtract %g from them, or take an encoder",
                       abs(mean) / sd, mean)  # fmt: skip
    return ScoreScale(layer, mean if biased else 0.0, sd)


def _last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the scores: the last linear one with one output."""
    return [
        str(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and ORIGINAL not in name
    ][-1]
