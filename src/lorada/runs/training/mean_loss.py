"""A Trainer whose loss is the mean over everything that counts in a step, in however many batches.

    loss of a step = Σ_b (n_b / n) · loss_b        n = Σ_b n_b, over all batches and processes

loss_b is a batch's own mean; n_b is how many rows of it count, or tokens where a text is to be
written. transformers' Trainer leaves the division by n to every model whose ``forward`` takes
further keywords, and many of those (BERT's, BART's, T5's, every loss of scores) do not divide.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lorada.tasks.tokenize import IGNORED


class MeanTrainer(Trainer):
    """A Trainer for which k batches of b rows are one batch of k·b rows."""

    loss_is_scaled_for_ga = True  # by the shares below

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # a model gives the mean of its batch, whichever
        self._measured: list[Tensor] = []  # of held-out rows: what their losses sum to, and count

    @property
    def _shift(self) -> int:
        """How many of the first labels a model never predicts."""
        return 0 if self.model.config.is_encoder_decoder else 1

    def counted(self, inputs: dict[str, Any]) -> Tensor:
        """What counts in a batch, by row (B,): its tokens with a label, or 1 for the row."""
        labels: Tensor = inputs["labels"]
        if "groups" in inputs:
            return torch.ones_like(inputs["groups"])
        if labels.dim() < 2:
            return torch.ones_like(labels, dtype=torch.long)
        return (labels[:, self._shift :] != IGNORED).sum(-1)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of a step, and n."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        total = torch.stack([self.counted(batch).sum().to(device) for batch in batches]).sum()
        if self.args.average_tokens_across_devices:
            total = self.accelerator.gather(total).sum()
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A batch's share of the loss of its step; its own mean where no step is known."""
        counted = self.counted(inputs)
        loss, outputs = self.batch_loss(model, inputs)
        if loss.dim():  # one of each device that the batch was dealt to
            dealt = torch.stack([part.sum() for part in counted.chunk(len(loss))]).to(loss.device)
            loss = (loss * dealt).sum() / dealt.sum()
        if num_items_in_batch is not None:
            loss = loss * (counted.sum().to(loss.device) / num_items_in_batch)
            if self.args.average_tokens_across_devices:  # gradients are averaged over processes
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def batch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean over what counts in a batch, and what the model gave."""
        if self.label_smoother is None:
            found: tuple[Tensor, Any] = super().compute_loss(model, inputs, return_outputs=True)
            return found
        # The Trainer knows from a model's name whether its logits are of the next token, and a
        # model that is sharded has another name.
        labels = inputs["labels"]
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        shifts = labels.dim() > 1 and self._shift == 1
        return self.label_smoother(outputs, labels, shift_labels=shifts), outputs

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """A step of a measurement, whose loss is remembered with what counts in it."""
        counted = self.counted(inputs)
        found = super().prediction_step(model, inputs, *args, **kwargs)
        each = torch.stack([counted * found[0].to(counted.device), counted], -1)
        self._measured.append(self.accelerator.gather_for_metrics(each.to(self.args.device)))
        return found

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, in which a token counts the same in whatever batch it stands.

        Random numbers of the training, some of which a loader of rows would take, stay its own.
        """
        self._measured = []
        with torch.random.fork_rng(devices=[]):
            output: EvalLoopOutput = super().evaluation_loop(
                *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        total, counted = torch.cat(self._measured).cpu().double().sum(0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / counted
        return output
