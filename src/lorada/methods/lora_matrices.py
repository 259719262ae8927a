"""How LoRA's two matrices train, where they do not train alike: LoRA+ and LoRA-FA.

LoRA adds s·BA to a weight, A (r × in) drawn at random, B (out × r) zero at the start.

    LoRA+    A ← A − η·Adam(G_A),    B ← B − λη·Adam(G_B)
    LoRA-FA  A stays as drawn,       B ← B − η·Adam(G_B (A Aᵀ)⁻¹ / s²)

With LoRA-FA's correction the change of the weight, s·ΔB·A, is the nearest to the full gradient that
a fixed A allows. PEFT has an optimizer for each. They take every parameter of a model as LoRA's or
as plain ones, so beside a map or an adapter they would give others' parameters the rate of B, or
pair them with A. What stands here changes LoRA's parameters alone, in whichever optimizer the
Trainer has made.

"LoRA+: Efficient Low Rank Adaptation of Large Models" (Hayou et al. 2024);
"LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning" (Zhang et al.
2023).
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of LoRA on one layer; of a convolution they have more than two axes."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float  # s, such as α/r


def lora_pairs(model: nn.Module) -> list[LoraPair]:
    """LoRA's matrices in a model's layers.

    Those on embeddings are left out: there PEFT draws B at random and A is zero, so neither LoRA+
    nor LoRA-FA is about them.
    """
    pairs = []
    for layer in model.modules():
        # AdaLoRA's layers are LoRA's by class, and have three factors.
        if not isinstance(layer, LoraLayer) or isinstance(layer, AdaLoraLayer):
            continue
        for adapter, matrix in layer.lora_A.items():
            pairs.append(
                LoraPair(matrix.weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
            )
    return pairs


def give_b_its_rate(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """LoRA+: let each B train at ``ratio`` times the learning rate of its parameter group.

    To be called before a scheduler is made, which takes the rates of all groups from there.

    Raises:
        ValueError: if no A trains, whose rate the ratio is of.
    """
    pairs = lora_pairs(model)
    if not any(pair.a.requires_grad for pair in pairs):
        raise ValueError(
            f"lora.loraplus_lr_ratio={ratio:g} is of the rate at which LoRA's A trains, and no A "
            "trains here: leave it out, and set learning_rate"
        )
    b_ids = {id(pair.b) for pair in pairs}
    for group in list(optimizer.param_groups):
        matrices_b = [parameter for parameter in group["params"] if id(parameter) in b_ids]
        if not matrices_b:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in b_ids]
        optimizer.add_param_group({**group, "params": matrices_b, "lr": ratio * group["lr"]})


def freeze_a(model: nn.Module) -> None:
    """LoRA-FA: keep each A as it is drawn; it is saved with the adapter all the same.

    Raises:
        ValueError: if LoRA is on parameters that are no weights of layers, such as fused experts.
    """
    if any(isinstance(layer, ParamWrapper) for layer in model.modules()):
        raise ValueError(
            "lorafa takes the weights of layers, and target_parameters names other parameters: "
            "leave it out, or use lora"
        )
    for pair in lora_pairs(model):
        pair.a.requires_grad_(False)


class LoraFaCallback(TrainerCallback):  # type: ignore[misc]
    """Corrects the gradient of each B before a step of the optimizer, as LoRA-FA does."""

    def __init__(self) -> None:
        # (A Aᵀ)⁻¹ / s² of each layer, by the id of its B: A never changes.
        self._corrections: dict[int, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse sharded weights, of which a process has only some rows of each A."""
        if args.fsdp:
            raise ValueError(
                "lorafa needs whole matrices A, and training.fsdp shards them: use DDP, or lora"
            )
        # Not before, as a resumed run has loaded its weights only now.
        self._corrections = {id(pair.b): correction(pair) for pair in lora_pairs(kwargs["model"])}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """G_B ← G_B (A Aᵀ)⁻¹ / s², after gradients were accumulated and clipped."""
        for pair in lora_pairs(kwargs["model"]):
            if pair.b.grad is None:
                continue
            corrected = pair.b.grad.flatten(1) @ self._corrections[id(pair.b)]
            pair.b.grad.copy_(corrected.view_as(pair.b.grad))


def correction(pair: LoraPair) -> Tensor:
    """(A Aᵀ)⁻¹ / s², (r, r), in the dtype of B.

    A row of A may depend on the others, as where r is more than the width: then it is the
    pseudo-inverse.
    """
    rows = pair.a.detach().flatten(1).float()  # some devices have no 64-bit numbers
    inverse: Tensor = torch.linalg.pinv(rows @ rows.T, hermitian=True) / pair.scale**2
    return inverse.to(pair.b.dtype)
