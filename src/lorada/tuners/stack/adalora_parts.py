"""AdaLoRA in a stack: it prunes its own matrices only, and only these get its regulariser.

    loss + γ/2n · Σ_k (‖P_kᵀ P_k − I‖ + ‖Q_k Q_kᵀ − I‖)        ΔW_k = P_k Λ_k Q_k,  k = 1 … n

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (2023),
Eqs. 3 and 4, with the mean of Frobenius norms that PEFT takes in place of the sum of their squares.
P is PEFT's ``lora_B``, Λ ``lora_E`` and Q ``lora_A``. PEFT finds them by name in the whole model,
where other parts have parameters of these names too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn

from lorada.functional.precision import no_autocast, wide


def factors(model: nn.Module, adapter_name: str, *kinds: str) -> Iterator[tuple[str, nn.Parameter]]:
    """AdaLoRA's matrices of an adapter, such as all ``lora_E``, with their names in the model."""
    for name, layer in model.named_modules():
        if not isinstance(layer, AdaLoraLayer):
            continue
        for kind in kinds:
            matrices = getattr(layer, kind)
            if adapter_name in matrices:
                yield f"{name}.{kind}.{adapter_name}", matrices[adapter_name]


class _AdaLoraMatrices:
    """What PEFT's allocator takes for a model: it shows AdaLoRA's matrices alone."""

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.model, self.adapter_name = model, adapter_name

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return factors(self.model, self.adapter_name, "lora_A", "lora_B", "lora_E")


class OwnRanks(RankAllocator):  # type: ignore[misc]
    """PEFT's allocator of ranks, for AdaLoRA's matrices alone."""

    def _set_budget_scheduler(self, model: nn.Module) -> None:
        super()._set_budget_scheduler(_AdaLoraMatrices(model, self.adapter_name))

    def update_and_allocate(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Score the ranks, and mask those that exceed the budget of a step."""
        return super().update_and_allocate(
            _AdaLoraMatrices(model, self.adapter_name), *args, **kwargs
        )

    def mask_using_rank_pattern(self, model: nn.Module, rank_pattern: dict[str, Any]) -> None:
        """Mask the ranks that were pruned before the last phase."""
        super().mask_using_rank_pattern(_AdaLoraMatrices(model, self.adapter_name), rank_pattern)


def regulariser(tuner: AdaLoraModel) -> Tensor:
    """What AdaLoRA adds to the loss of a training, in float32."""
    name = tuner.trainable_adapter_name
    distances = [_distance(q) for _, q in factors(tuner.model, name, "lora_A")]
    distances += [_distance(p.mT) for _, p in factors(tuner.model, name, "lora_B")]
    # Layers may be on several devices.
    together = torch.stack([distance.to(distances[0].device) for distance in distances])
    weight: float = tuner.peft_config[name].orth_reg_weight
    return weight * together.mean()


def _distance(rows: Tensor) -> Tensor:
    """‖M Mᵀ − I‖ of a matrix M: how far its rows are from orthonormal."""
    with no_autocast(rows.device):
        gram = wide(rows) @ wide(rows).mT
        identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
        distance: Tensor = torch.linalg.norm(gram - identity)
        return distance
