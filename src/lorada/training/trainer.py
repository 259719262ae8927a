"""The Trainer of a run: transformers' Trainer, with the loss of a step as one mean.

    loss of a step = Σ_b (n_b / n) · loss_b        n = Σ_b n_b, over all batches and processes

loss_b is the mean over batch b. n_b is the number of its rows or, if the model learns to write
text, of its tokens that have a label. transformers' Trainer leaves the division by n to each model
with further keywords in its ``forward``, and many of them do not divide (BERT, BART, T5, and every
loss of scores).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from lorada.data.dataset import token_counts
from lorada.data.tokenize import IGNORED
from lorada.support.processes import gather_values
from lorada.training.callbacks import refuse_broken_loss
from lorada.training.models.labelled_loss import LabelledLoss, find_labelled_loss
from lorada.training.models.pooling import save_beside
from lorada.training.score_scale import ScoreScale
from lorada.tuners.stack.stack import LoradaModel

LEARNED_HEAD = "learned_head.safetensors"  # in a checkpoint: the last layer of a head for scores


class _GroupedByLength(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' sampler, with its batches in an order that seed and epoch alone decide.

    It sorts fifty batches at a time, the longest first: where length depends on the task or the
    label, one kind of rows would come after another. So the batches come in random order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.tensor([*super().__iter__()])
        whole, size = len(rows) // self.batch_size, self.batch_size  # a part of one stays the last
        order = torch.randperm(whole, generator=self.generator)
        rows[: whole * size] = rows[: whole * size].view(whole, size)[order].flatten()
        return iter(rows.tolist())


class RunTrainer(Trainer):
    """A Trainer for which k batches of b rows are one batch of k·b rows.

    ``saved`` are the names of the parameters that a checkpoint keeps of a model that trains in
    part, unless it goes to the hub; None for an adapter, or a model that it keeps whole. ``scale``
    says how scores are learned. A checkpoint's weights answer in the scores' own unit; the head as
    it is learned lies beside them, because turned back it would be rounded.
    """

    loss_is_scaled_for_ga = True  # the Trainer must not scale: compute_loss does

    def __init__(
        self,
        *args: Any,
        saved: frozenset[str] | None = None,
        scale: ScoreScale | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._saved, self._scale = saved, scale
        self.model_accepts_loss_kwargs = False  # every model returns the mean of its batch
        self._step_loss: Tensor | float = 0.0  # sum over the step's batches so far
        # For each held-out batch so far: [sum of the losses, how many rows or tokens count] by row.
        self._held_out_sums: list[Tensor] = []
        self._needs_logits = False
        self._labelled_loss: LabelledLoss | None = None
        self._labelled_loss_known = False

    @property
    def _shift(self) -> int:
        """The number of first labels that a model never predicts."""
        return 0 if self.model.config.is_encoder_decoder else 1

    def counted(self, inputs: dict[str, Any]) -> Tensor:
        """The share of each row in n_b (B,): its tokens that have a label, or 1."""
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

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One batch of a step; after the last, the loss of the step is checked."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if self.accelerator.sync_gradients:
            refuse_broken_loss(self._step_loss, self.args, self.state)
            self._step_loss = 0.0
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model, and the pooling of a fully trained one beside its weights.

        The arguments are saved without the hub token, as ``training_args.bin`` is often shared.
        """
        model = self.accelerator.unwrap_model(self.model)
        folder = Path(output_dir or self.args.output_dir)
        if self._scale is not None:
            weights = model.state_dict() if state_dict is None else state_dict
            state_dict, head = self._scale.saved(weights), self._scale.own(weights)
        if self._saved is not None and not self.args.push_to_hub:
            weights = model.state_dict() if state_dict is None else state_dict
            state_dict = {name: weights[name] for name in sorted(self._saved)}
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            save_beside(model, folder)
            if self._scale is not None:
                save_file(head, folder / LEARNED_HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights, and the head for scores as it is learned."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint, and its head as it is learned."""
        super()._load_best_model()
        self._load_head(str(self.state.best_model_checkpoint))

    def _load_head(self, checkpoint: str) -> None:
        # FSDP has files of its own, with every weight as it is learned.
        if self._scale is None or self.is_fsdp_enabled:
            return
        own = self._scale.own(dict(self.model.named_parameters()))
        for name, weight in load_file(Path(checkpoint, LEARNED_HEAD)).items():
            own[name].data.copy_(weight)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of what a checkpoint lacks, unless it keeps a part and only lacks the rest."""
        if self._saved is None or self._saved & set(load_result.missing_keys):
            super()._issue_warnings_after_load(load_result)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A batch's share of the loss of its step; the mean of the batch if n is not given."""
        counted = self.counted(inputs)
        loss, outputs = self.batch_loss(model, inputs)
        if model.training and "loss" not in outputs:  # which the model has not computed
            stack = getattr(self.accelerator.unwrap_model(model), "base_model", None)
            loss = stack.regularised(loss) if isinstance(stack, LoradaModel) else loss
        if num_items_in_batch is not None:
            loss = loss * (counted.sum().to(loss.device) / num_items_in_batch)
            if self.args.average_tokens_across_devices:  # gradients are averaged over processes
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def batch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and the model's outputs."""
        if self.label_smoother is None:
            labelled = self._labelled(model, inputs)
            if labelled is not None:
                losses, _, outputs = labelled(model, inputs)
                return losses.mean(), outputs
            found: tuple[Tensor, Any] = super().compute_loss(model, inputs, return_outputs=True)
            return found
        # The Trainer decides by the name of the model's class whether logits predict the next
        # token, but FSDP renames the class.
        labels = inputs["labels"]
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        shifts = labels.dim() > 1 and self._shift == 1
        return self.label_smoother(outputs, labels, shift_labels=shifts), outputs

    def _labelled(self, model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
        """What computes logits only where labels count, for models and batches that it is for.

        Those of FSDP are in pieces, and a compiled one is not run by Python.
        """
        labels = inputs["labels"]
        pieces = self.is_fsdp_enabled or self.args.torch_compile
        if self._needs_logits or self._shift == 0 or labels.dim() < 2 or pieces:
            return None
        if not self._labelled_loss_known:
            tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
            if any(tensor.shape != labels.shape for tensor in tensors):
                return None
            if not self.counted(inputs).any():
                return None
            bare = self.accelerator.unwrap_model(model)
            self._labelled_loss = find_labelled_loss(bare, inputs)
            self._labelled_loss_known = True
        return self._labelled_loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """One held-out batch; its loss and n_b are kept for ``evaluation_loop``."""
        counted = self.counted(inputs)
        self._needs_logits = not prediction_loss_only
        try:
            found = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self._needs_logits = False
        sums = torch.stack([counted * found[0].to(counted.device), counted], -1)
        self._held_out_sums.append(self.accelerator.gather_for_metrics(sums.to(self.args.device)))
        return found

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, in which every token counts the same in any batch.

        The data loader draws random numbers, so the training's random state is put back after it.
        """
        self._held_out_sums = []
        with torch.random.fork_rng(devices=[]):
            output: EvalLoopOutput = super().evaluation_loop(
                *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        total, counted = torch.cat(self._held_out_sums).cpu().double().sum(0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / counted
        return output

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether ``save_strategy=best`` saves now: a new best, or a save that was asked for."""
        best: bool = super()._determine_best_metric(metrics, trial)
        return best or self.control.should_save

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """The Trainer's own sampler, with an order for ``group_by_length`` that can be resumed."""
        args = self.args
        if args.train_sampling_strategy != "group_by_length":
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        rows = self.train_dataset if train_dataset is None else train_dataset
        size = args.train_batch_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return _GroupedByLength(size, token_counts(rows), seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        """Held-out rows in order, because answers are compared with them in order."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _save_rng_state(self, output_dir: str) -> None:
        """Save random states; no process goes on before all have saved theirs.

        The first process writes ``trainer_state.json`` next, which makes the checkpoint complete.
        """
        super()._save_rng_state(output_dir)
        gather_values(None)
