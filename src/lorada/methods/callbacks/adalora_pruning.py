"""AdaLoRA: prunes ranks during a training with transformers' Trainer.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (2023).
PEFT has the tuner and the rank allocator, but the allocator must be called in each step. Without
the calls nothing is pruned, and there is no warning. The schedule, in steps:

    tinit steps at init_r | pruning every deltaT steps | tfinal steps at target_r, ranks fixed
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from lorada.methods.fit_to_model import refuse_no_pruning
from lorada.tuners.stack.adalora_parts import factors
from lorada.tuners.stack.stack import LoradaModel

logger = logging.getLogger(__name__)

SCORES = "adalora.safetensors"  # beside the adapter of a checkpoint
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls AdaLoRA's allocator after each optimizer step, for an adapter alone or in a stack.

    A ``tinit``, ``tfinal`` or ``deltaT`` between 0 and 1 is a share of the run's steps, as with
    ``warmup_steps``. It is shortened where it would leave no step to prune in.

    Checkpoints hold every rank, as pruned ones may grow back, and the scores so far, so that a
    resumed run gives the same result. The adapter that is saved after training is pruned. A
    training that starts from it trains the ranks that are left, and prunes none.
    """

    def __init__(self) -> None:
        self._pattern: dict[str, list[bool]] | None = None  # which ranks are left, by matrix
        # As given: a training that begins again, with smaller batches, has another length.
        self._phases: tuple[float, float, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compute AdaLoRA's schedule for the length of the training."""
        self._tuner = tuner = _tuner_of(kwargs["model"])
        self._allocator = tuner.rankallocator
        self._config = config = tuner.peft_config[tuner.trainable_adapter_name]
        self._pattern = None
        diagonals = factors(tuner.model, tuner.trainable_adapter_name, "lora_E")
        self._pruned = any(len(diagonal) != config.init_r for _, diagonal in diagonals)
        if self._pruned:
            logger.warning("AdaLoRA: this adapter is pruned, so the ranks that are left are kept")
            return
        refuse_no_pruning(config.init_r, config.target_r)
        self._phases = self._phases or (config.tinit, config.tfinal, config.deltaT)
        config.tinit, config.tfinal, config.deltaT = schedule(self._phases, state.max_steps)
        config.total_step = state.max_steps
        config.rank_pattern = None
        self._allocator.reset_ipt()
        scores = _scores_file(args, state)
        if state.global_step:
            if not scores.is_file():
                raise ValueError(
                    f"AdaLoRA goes on with the scores of its ranks, and there is no {scores}: "
                    "resume in the folder of that training"
                )
            self._load(scores)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the ranks with this step's gradients, and mask those that exceed the budget."""
        if self._pruned:
            return
        trained = [p for p in self._tuner.model.parameters() if p.requires_grad]
        # PEFT reads the gradient of every parameter that trains.
        unused = [parameter for parameter in trained if parameter.grad is None]
        for parameter in unused:  # such as a map that no token of this batch reached
            parameter.grad = torch.zeros_like(parameter)
        if args.fp16:  # a step that overflowed was skipped: its gradients count as 0
            for parameter in self._tuner.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self._config.rank_pattern = self._pattern
        # + 1 counts this step too; otherwise a schedule without a last phase would not end.
        self._tuner.update_and_allocate(state.global_step + 1)
        self._pattern, self._config.rank_pattern = self._config.rank_pattern, None
        for parameter in unused:
            parameter.grad = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the scores so far in the folder of the checkpoint."""
        scores = _scores_file(args, state)
        if self._pruned or not state.is_world_process_zero or not scores.parent.is_dir():
            return
        tensors = {}
        for average in AVERAGES:
            for name, value in getattr(self._allocator, average).items():
                tensors[f"{average}:{name}"] = value.contiguous()
        save_file(tensors, scores, {"rank_pattern": json.dumps(self._pattern)})

    def _load(self, scores: Path) -> None:
        device = next(self._tuner.model.parameters()).device
        with safe_open(scores, "pt", device=str(device)) as file:
            self._pattern = json.loads(file.metadata()["rank_pattern"])
            for key in file.keys():  # noqa: SIM118
                average, _, name = key.partition(":")
                getattr(self._allocator, average)[name] = file.get_tensor(key)
                self._allocator.ipt[name] = torch.zeros_like(file.get_tensor(key))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the pattern into the config, so that saving prunes."""
        if self._pattern is None:
            return
        parameters: dict[str, Tensor] = dict(self._tuner.model.named_parameters())
        self._config.rank_pattern = {}
        for name, unpruned in self._pattern.items():
            # If the best checkpoint was loaded, its ranks that are not 0 are kept too.
            not_zero = parameters[name].detach().flatten().cpu() != 0
            self._config.rank_pattern[name] = (torch.tensor(unpruned) | not_zero).tolist()


def schedule(phases: tuple[float, float, float], total: int) -> tuple[int, int, int]:
    """``tinit``, ``tfinal`` and ``deltaT`` in steps, for a run of ``total`` steps.

    A schedule that leaves no step to prune in is refused.
    """
    tinit, tfinal, delta_t = phases
    first, last = _in_steps(tinit, total), _in_steps(tfinal, total)
    # The ranks of the last phase are chosen at its first step, by scores of the steps before.
    if 0 < tfinal < 1:
        last = max(0, min(last, total - max(2, first + 1)))
    if 0 < tinit < 1:
        first = max(0, min(first, total - 1 - last))
    if total - last < max(2, first + 1):
        raise ValueError(
            f"AdaLoRA: tinit={first} and tfinal={last} leave no step of {total} to prune in: lower "
            "them, or train for longer"
        )
    return first, last, max(1, _in_steps(delta_t, total))


def _in_steps(value: float, total: int) -> int:
    """A length in steps; one between 0 and 1 is a share of all steps."""
    return int(value * total) if 0 < value < 1 else int(value)


def _tuner_of(model: nn.Module) -> AdaLoraModel:
    """The AdaLoRA tuner in a model whose ranks are allocated while it trains.

    Raises:
        ValueError: if there is none.
    """
    base = getattr(model, "base_model", None)
    tuners = base.tuners() if isinstance(base, LoradaModel) else [base]
    for tuner in tuners:
        if isinstance(tuner, AdaLoraModel) and hasattr(tuner, "rankallocator"):
            return tuner
    raise ValueError("AdaLoraCallback: this model has no AdaLoraConfig part that trains")


def _scores_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / SCORES
