"""Part 1: the loss and the gradients of every method on a tiny model, beside a CPU in fp64."""

import copy
from typing import Any

import torch
from gpu.machine import Machine, find_tests
from torch import Tensor, nn

TITLE = "Every method computes what it does on a CPU"
ABOUT = (
    "Loss and gradients of one batch on a tiny model. Each number is a relative difference to the "
    "same method on a CPU in fp64: of the loss, and of the worst gradient by its norm. In bf16 it "
    "is as `dtype=mixed` trains: what trains is in fp32, and the step under autocast. A CPU in "
    "bf16 shows how much of it is rounding."
)
HEADER = (
    "method", "fp64: loss", "fp64: gradient", "bf16: loss", "bf16: gradient", "a CPU's bf16: loss",
    "a CPU's bf16: gradient",
)  # fmt: skip
SECONDS = 120  # that a case may take
ALONE = False  # one process for all cases
LEAST = 1e-3  # a gradient smaller than this share of the largest one counts as large as that
Found = tuple[float, dict[str, Tensor]]


def cases(machine: Machine) -> list[str]:
    """All methods; a few of them in the tiny form."""
    from lorada import METHODS

    return machine.pick([*METHODS], ["lora", "lorada_la"])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """The differences of a method."""
    find_tests()
    from architectures import inputs
    from method_cases import defined, placed, with_labels

    from lorada.methods.head_modules import widen_trained

    kind = "llama" if defined(case, "llama") else "bert"
    torch.manual_seed(0)
    batch = inputs(kind)
    model, _ = placed(case, kind, batch)
    for weight in model.parameters():
        if weight.requires_grad:  # off the start, whose zeros hide most gradients
            weight.data.add_(torch.randn_like(weight), alpha=0.02)

    def found(device: str, dtype: torch.dtype) -> Found:
        own = copy.deepcopy(model).to(device, dtype)
        narrow = dtype == torch.bfloat16
        if narrow:
            widen_trained(own)
        given = with_labels(kind, {name: x.to(device) for name, x in batch.items()})
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=narrow):
            return _loss_and_gradients(own, given)

    exact = found("cpu", torch.float64)
    sides = {
        "fp64": (machine.device, torch.float64),
        "bf16": (machine.device, torch.bfloat16),
        "cpu_bf16": ("cpu", torch.bfloat16),
    }
    return {name: _difference(found(*side), exact) for name, side in sides.items()}


def _loss_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> Found:
    model.eval()  # without dropout, which each device draws in its own way
    loss = model(**batch).loss
    loss.backward()
    gradients = {
        name: weight.grad.detach().cpu().double()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return float(loss.detach().double().cpu()), gradients


def _difference(found: Found, exact: Found) -> dict[str, float]:
    if found[1].keys() != exact[1].keys():
        raise ValueError("the gradients are of other parameters than on a CPU")
    largest = max(float(wanted.norm()) for wanted in exact[1].values())
    worst = max(
        float((found[1][name] - wanted).norm() / wanted.norm().clamp(min=LEAST * largest))
        for name, wanted in exact[1].items()
    )
    return {"loss": abs(found[0] - exact[0]) / abs(exact[0]), "gradient": worst}


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each method."""
    return [
        (name, *(f"{row[side][of]:.1e}" for side in ("fp64", "bf16", "cpu_bf16")
                 for of in ("loss", "gradient")))
        for name, row in rows.items()
    ]  # fmt: skip
