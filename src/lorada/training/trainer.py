"""The Trainers of a run: transformers' Trainer, with the loss of a step as one mean.

    loss of a step = Σ_b (n_b / n) · loss_b        n = Σ_b n_b, over all batches and processes

loss_b is the mean over batch b. n_b is the number of its rows or, if the model learns to write
text, of its tokens that have a label. transformers' Trainer leaves the division by n to each model
with further keywords in its ``forward``, and many of them do not divide (BERT, BART, T5, and every
loss of scores).

Scores are learned as standard deviations from their mean, and saved in the rows' own unit:

    learned: (score − mean) / sd        saved: sd·W and sd·b + mean, of the head's last layer

So grades from 1 to 5 and the same grades from 1000 to 5000 are one training. Checkpoints keep the
head as it learns. The head of a decoder has no bias in transformers, so nothing could hold the
mean: there scores are only divided.
"""

import copy
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedTokenizerBase, Seq2SeqTrainer, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from lorada.data.batches import IGNORED, token_counts
from lorada.data.rows.rows import Rows
from lorada.data.task import Kind, Metrics
from lorada.support.error_messages import MEASURING, memory_remedy
from lorada.support.processes import all_gather, is_main_process
from lorada.support.row_sources import HEADED
from lorada.training.callbacks import refuse_broken_loss
from lorada.training.models.adapters import save_pooling_beside
from lorada.training.models.candidate_scores import likeliest, sequence_scores
from lorada.training.models.labelled_loss import LabelledLoss, find_labelled_loss
from lorada.tuners.stack.stack import LoradaModel

logger = logging.getLogger(__name__)

FAR = 10  # standard deviations from 0 beyond which a head without a bias learns scores poorly
# PEFT keeps two copies of a head that trains, by these names.
TRAINED_COPY, ORIGINAL = "modules_to_save.default", "original_module"


@dataclass(frozen=True)
class ScoreScale:
    """How scores are learned: without their ``mean``, over ``sd``, by the head's last ``layer``."""

    layer: str
    mean: float
    sd: float

    def learned(self, rows: Rows) -> Rows:
        """Rows with scores as they are learned."""
        learned_rows = []
        for row in rows.rows:
            learned_score = (float(row["score"]) - self.mean) / self.sd
            learned_rows.append({**row, "score": learned_score})
        return replace(rows, rows=learned_rows)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Make a model that has learned answer in the unit of the rows."""
        for name, weight in model.get_submodule(self.layer).named_parameters():
            shift = self.mean if name == "bias" else 0.0
            weight.copy_(weight.double() * self.sd + shift)

    def begin(self, model: nn.Module, drawn: Collection[str]) -> "ScoreScale":
        """The scale for the model that is trained; a head that has learned is put into its unit.

        A head of the checkpoint, or of the adapter of ``--from``, answers in the unit of the rows.
        It is put where scores are learned, so that the model begins as what it was.
        """
        scale = replace(self, layer=_last_layer(model))  # whose name an adapter has changed
        # PEFT keeps the head as it was before training beside the copy that trains. They differ
        # where the adapter of ``--from`` has brought a head of its own.
        original = model.get_parameter(f"{scale.layer.replace(TRAINED_COPY, ORIGINAL)}.weight")
        trained = model.get_parameter(f"{scale.layer}.weight")
        is_drawn = f"{self.layer}.weight" in drawn
        is_from_adapter = not torch.equal(trained, original)
        if not is_drawn or is_from_adapter:
            # y = (old answer − mean) / sd, which is ``fold`` with these two.
            inverse = replace(scale, mean=-self.mean / self.sd, sd=1 / self.sd)
            inverse.fold(model)
        return scale


def scale_of(rows: Rows, base: nn.Module) -> ScoreScale | None:
    """How the scores of training rows are learned on a base; None for rows of another form.

    With a bias the head learns standard scores. Without one it learns scores over their deviation,
    with a warning if they are far from 0.
    """
    if rows.form != "score":
        return None
    scores = [float(row["score"]) for row in rows.rows]
    mean, sd, layer = fmean(scores), pstdev(scores), _last_layer(base)
    if base.get_submodule(layer).bias is not None:
        return ScoreScale(layer, mean, sd)
    if abs(mean) > FAR * sd and is_main_process():
        logger.warning("the scores are %.0f standard deviations from 0, and the head of this model "
                       "has no bias to hold their mean: subtract %g from them, or take an encoder",
                       abs(mean) / sd, mean)  # fmt: skip
    return ScoreScale(layer, 0.0, sd)


def _last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the scores: the last linear one with one output."""
    names = [
        str(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and ORIGINAL not in name
    ]
    return names[-1]


def _are_for_head(labels: Tensor) -> bool:
    """Whether a head learns these labels: one (B,), or 0.0 or 1.0 for each name (B, L)."""
    return labels.dim() < 2 or labels.is_floating_point()


class _GroupedByLength(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' sampler, with its batches in an order that seed and epoch alone decide.

    It sorts fifty batches at a time, the longest first: where length depends on the task or the
    label, one kind of rows would come after another. So the batches come in random order.
    """

    def __init__(
        self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]
    ) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of rows, batch after batch."""
        # The parent class draws from ``generator``: a new one for each epoch, so that a resumed run
        # has the order of an uninterrupted one.
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        rows = torch.tensor([*super().__iter__()])
        # Only full batches change places: a part of one stays the last.
        full_batches = len(rows) // self.batch_size
        stop = full_batches * self.batch_size
        order = torch.randperm(full_batches, generator=self.generator)
        rows[:stop] = rows[:stop].view(full_batches, self.batch_size)[order].flatten()
        return iter(rows.tolist())


class RunTrainer(Trainer):
    """A Trainer for which k batches of b rows are one batch of k·b rows."""

    loss_is_scaled_for_ga = True  # the Trainer must not scale: compute_loss does

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # every model returns the mean of its batch
        self._step_loss: Tensor | float = 0.0  # sum over the step's batches so far
        # For each held-out batch so far: [sum of the losses, how many rows or tokens count] by row.
        self._held_out_sums: list[Tensor] = []
        self._labelled_loss: LabelledLoss | None = None  # None also for a model that it is not for
        self._has_sought_labelled_loss = False

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; under FSDP2 every weight keeps its dtype, as it does under DDP.

        accelerate would cast weights to 16 bits before each forward: a map, which is computed in
        fp32 from its factors, would be that of rounded factors, and so would all that trains.
        Autocast narrows what is to be narrow. Gradients are summed over the processes in fp32.
        """
        super().create_accelerator_and_postprocess()
        plugin: Any = getattr(self.accelerator.state, "fsdp_plugin", None)
        if isinstance(getattr(plugin, "mixed_precision_policy", None), MixedPrecisionPolicy):
            plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)

    @property
    def _shift(self) -> int:
        """How many first labels a model never predicts: a decoder's first token follows none."""
        return 0 if self.model.config.is_encoder_decoder else 1

    def counted(self, inputs: dict[str, Any]) -> Tensor:
        """The share of each row in n_b (B,): its tokens that have a label, or 1."""
        labels: Tensor = inputs["labels"]
        if "groups" in inputs:  # each row is a group of candidates, with labels of their own
            return torch.ones_like(inputs["groups"])
        if _are_for_head(labels):
            return torch.ones(len(labels), dtype=torch.long, device=labels.device)
        return (labels[:, self._shift :] != IGNORED).sum(-1)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of a step, and n as a tensor (); None if there are no batches."""
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
        """One batch of a step, as in ``Trainer``; after the last, the loss of the step is checked.

        Raises:
            DivergedError: if the loss of the step is NaN or infinite.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if self.accelerator.sync_gradients:  # which they are with the last batch of a step
            refuse_broken_loss(self._step_loss, self.args, self.state)
            self._step_loss = 0.0
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model, and the pooling of a fully trained one beside its weights.

        The arguments are saved without the hub token, as ``training_args.bin`` is often shared.
        """
        # ``Trainer._save`` writes ``self.args`` as it is at this moment.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_pooling_beside(self.accelerator.unwrap_model(self.model), folder)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch, times its share of n; the mean of the batch if n is not given.

        Args:
            model: as the Trainer wraps it.
            inputs: a batch of the collator, with ``labels``.
            return_outputs: whether the model's outputs are returned with the loss.
            num_items_in_batch: n, which ``get_batch_samples`` counts; None when held-out rows are
                measured.
        """
        counted = self.counted(inputs)
        loss, outputs = self.batch_loss(model, inputs)
        # A model that computes its own loss has added what AdaLoRA adds already.
        if model.training and "loss" not in outputs:
            stack = getattr(self.accelerator.unwrap_model(model), "base_model", None)
            if isinstance(stack, LoradaModel):
                loss = stack.regularised(loss)
        if num_items_in_batch is not None:
            loss = loss * (counted.sum().to(loss.device) / num_items_in_batch)
            if self.args.average_tokens_across_devices:
                # n is of all processes, over which gradients are averaged and not summed.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def batch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and the model's outputs."""
        if self.label_smoother is None:
            labelled = self._labelled(model, inputs)
            if labelled is not None:
                losses, _, outputs = labelled(model, inputs)
                return losses.mean(), outputs
            # None: the model computes its own loss from the labels.
            own_loss: tuple[Tensor, Any] = super().compute_loss(model, inputs, return_outputs=True)
            return own_loss
        # The Trainer decides by the name of the model's class whether logits predict the next
        # token, but FSDP renames the class.
        labels = inputs["labels"]
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        predicts_next = not _are_for_head(labels) and self._shift == 1
        return self.label_smoother(outputs, labels, shift_labels=predicts_next), outputs

    def _labelled(self, model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
        """What computes logits only where labels count, for models and batches that it is for.

        Those of FSDP are in pieces, and a compiled one is not run by Python.
        """
        # Of an encoder–decoder or a head every logit is needed, or there is one a row.
        if self._shift == 0 or _are_for_head(inputs["labels"]):
            return None
        if self.is_fsdp_enabled or self.args.torch_compile:
            return None
        if not self._has_sought_labelled_loss:
            self._labelled_loss = find_labelled_loss(self.accelerator.unwrap_model(model), inputs)
            self._has_sought_labelled_loss = True
        return self._labelled_loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """One held-out batch, whose loss and n_b are kept for ``evaluation_loop``."""
        counted = self.counted(inputs)
        prediction = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        mean_loss = prediction[0].to(counted.device)
        sums = torch.stack([counted * mean_loss, counted], -1)
        # The last batch of several processes is filled up with copies, which this leaves out.
        self._held_out_sums.append(self.accelerator.gather_for_metrics(sums.to(self.args.device)))
        return prediction

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, in which every token counts the same in any batch.

        The data loader draws random numbers, so the training's random state is put back after it.
        """
        self._held_out_sums = []
        with torch.random.fork_rng(devices=[]), memory_remedy(MEASURING):
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
        # All batches of a step have rows of about the same length.
        step_rows = args.train_batch_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        lengths = token_counts(self.train_dataset)
        return _GroupedByLength(step_rows, lengths, seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> None:
        """None: held-out rows come in order, because answers are compared with them in order."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Save random states; no process goes on before all have saved theirs.

        The first process writes ``trainer_state.json`` next, which makes the checkpoint complete.
        """
        super()._save_rng_state(output_dir)
        all_gather(None)


def choice_loss(scores: Tensor, groups: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy over rows.

    ``scores`` (C,) are of the candidates of all rows in order; ``groups`` (B,) says how many
    candidates each row has, ``answers`` (B,) which is right.
    """
    losses = []
    for row_scores, answer in zip(scores.split(groups.tolist()), answers, strict=True):
        losses.append(F.cross_entropy(row_scores[None], answer[None]))
    return torch.stack(losses).mean()


class ChoiceTrainer(RunTrainer):
    """A Trainer for batches of candidates; it also measures accuracy on held-out rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # For each held-out batch so far: whether the choices are right, booleans (B,).
        self._right_choices: list[Tensor] = []

    def batch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Cross-entropy of the candidates' scores."""
        scores = sequence_scores(model, inputs)
        if not model.training:
            choices = torch.tensor(likeliest(scores, inputs["groups"]), device=scores.device)
            are_right = choices == inputs["answers"].to(scores.device)
            self._right_choices.append(self.accelerator.gather_for_metrics(are_right))
        return choice_loss(scores, inputs["groups"], inputs["answers"]), {"scores": scores}

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, and the ``accuracy`` of the likeliest candidates in percent."""
        self._right_choices = []
        output: EvalLoopOutput = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        share = torch.cat(self._right_choices).float().mean().item()
        output.metrics[f"{metric_key_prefix}_accuracy"] = 100 * share
        return output


def writes_texts(rows: Rows, kind: Kind) -> bool:
    """Whether a model of this kind is an encoder–decoder that learns to write texts."""
    return kind == "encoder_decoder" and rows.form not in HEADED


def scorer(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], Metrics]:
    """The ``compute_metrics`` of a Trainer: it scores tokens generated for the held-out rows."""

    def score(prediction: EvalPrediction) -> Metrics:
        # The Trainer fills up shorter texts with -100, which is no token.
        ids = np.where(prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return rows.protocol.score(texts, rows.rows)

    return score


class WritingTrainer(RunTrainer, Seq2SeqTrainer):
    """A Trainer that generates texts for held-out rows, with the settings ``generation``."""

    def __init__(self, *args: Any, generation: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation = generation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss and, with ``predict_with_generate``, the metrics, by their names."""
        settings = {"do_sample": False, **self.generation}
        if self.args.generation_num_beams is not None:
            settings["num_beams"] = self.args.generation_num_beams
        metrics: dict[str, float] = super().evaluate(*args, **{**settings, **kwargs})
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Measure a batch of held-out rows under autocast; generation settings stay as they are.

        ``Seq2SeqTrainer`` fills in missing settings, which would then be saved with the model. Nor
        does it generate under autocast, which accelerate gives to the forward of the whole model
        alone, and not to the encoder by itself.
        """
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        own_settings = copy.deepcopy(model.generation_config)
        try:
            with self.accelerator.autocast():
                return super().prediction_step(*args, **kwargs)
        finally:
            model.generation_config = own_settings
