"""The Trainer for encoder–decoders that learn to write texts."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)

from lorada.data.metrics import Metrics
from lorada.data.task import Kind
from lorada.data.task_rows import Rows
from lorada.support.row_sources import HEADED
from lorada.training.trainer import RunTrainer


def writes_texts(rows: Rows, kind: Kind) -> bool:
    """Whether a model of this kind is an encoder–decoder that learns to write texts."""
    return kind == "encoder_decoder" and rows.form not in HEADED


def scorer(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], Metrics]:
    """A function that computes the metrics of held-out rows from the tokens generated for them."""

    def score(prediction: EvalPrediction) -> Metrics:
        ids = np.where(prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions)
        return rows.protocol.score(tokenizer.batch_decode(ids, skip_special_tokens=True), rows.rows)

    return score


class WritingTrainer(RunTrainer, Seq2SeqTrainer):
    """A Trainer that generates texts for held-out rows, with the settings ``generation``."""

    def __init__(self, *args: Any, generation: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation = generation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss and, with ``predict_with_generate``, the metrics."""
        settings = {"do_sample": False, **self.generation}
        if self.args.generation_num_beams is not None:
            settings["num_beams"] = self.args.generation_num_beams
        found: dict[str, float] = super().evaluate(*args, **{**settings, **kwargs})
        return found

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of held-out rows; the model's own generation settings do not change.

        ``Seq2SeqTrainer`` fills in missing settings, which would then be saved with the model.
        """
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        kept = copy.deepcopy(model.generation_config)
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            model.generation_config = kept
