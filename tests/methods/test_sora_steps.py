"""SoRA as its script trains it, step by step beside the equations, and what it leaves behind."""

import pytest
import torch
import torch.nn.functional as F
from architectures import _MODELS
from callback_runs import trainer_of
from conftest import assert_close
from peft import get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Trainer,
    TrainerCallback,
)

from lorada import SoraConfig
from lorada.methods.callbacks.sora_thresholds import SoraCallback

pytestmark = pytest.mark.fp64

STEPS, WARMUP, RATE, DECAY, CLIP = 12, 2, 0.05, 0.1, 0.1
EPSILON = 1e-4  # large enough for Adam not to blow up the rounding of gradients that are next to 0
XI, PENALTY, RANK, ALPHA = 0.03, 10.0, 3, 6.0
NORMS = ["output.LayerNorm"]  # both of each layer, and not that of the embeddings


def classifier() -> DebertaV2ForSequenceClassification:
    torch.manual_seed(0)
    sizes = {**_MODELS["deberta_v2"][1], "num_labels": 3}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**{**sizes, **still})).double()


def rows() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(5, 90, (7,)), "labels": torch.tensor(i % 3)}
            for i in range(6)]  # fmt: skip


def run_of(folder) -> Trainer:
    config = SoraConfig(rank=RANK, alpha=ALPHA, penalty=PENALTY, modules_to_save=NORMS)
    model = get_peft_model(classifier(), config).double()
    return trainer_of(
        model, folder, rows(), SoraCallback(xi=XI), max_steps=STEPS,
        per_device_train_batch_size=6, learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP,
        warmup_steps=WARMUP, adam_epsilon=EPSILON,
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by the names of the plain model: A, g, B of a matrix, and norms."""
    return {
        name.removeprefix("base_model.model.")
        .replace(".default", "")
        .replace(".modules_to_save", ""): p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


class Plain:
    """The equations: one loss with the penalty in it, one norm to clip, Adam, decay, threshold."""

    def __init__(self, base: nn.Module, start: dict[str, Tensor]) -> None:
        self.base = base
        self.values = {name: p.clone().requires_grad_() for name, p in start.items()}
        decay = {name: DECAY * name.endswith(("lora_A", "lora_B")) for name in start}  # no gates
        groups = [{"params": [p], "weight_decay": decay[name]} for name, p in self.values.items()]
        self.adam = torch.optim.AdamW(groups, eps=EPSILON)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        changed = {name: p for name, p in self.values.items() if "lora_" not in name}
        gates = []
        for name in self.values:
            if name.endswith("lora_gate"):
                module = name.removesuffix(".lora_gate")
                a, g, b = (self.values[f"{module}.lora_{x}"] for x in ("A", "gate", "B"))
                weight = self.base.get_parameter(f"{module}.weight")
                changed[f"{module}.weight"] = weight + ALPHA / RANK * b @ torch.diag(g) @ a
                gates.append(g)
        # DeBERTa takes its loss in fp32.
        logits = functional_call(self.base, changed, (batch["input_ids"],)).logits.float()
        return F.cross_entropy(logits, batch["labels"]) + PENALTY * torch.cat(gates).abs().mean()

    def step(self, t: int, batch: dict[str, Tensor]) -> None:
        values = list(self.values.values())
        for p, grad in zip(values, torch.autograd.grad(self.loss(batch), values), strict=True):
            p.grad = grad
        nn.utils.clip_grad_norm_(values, CLIP)
        for group in self.adam.param_groups:
            group["lr"] = RATE * (t / WARMUP if t < WARMUP else (STEPS - t) / (STEPS - WARMUP))
        self.adam.step()
        with torch.no_grad():
            for name, p in self.values.items():
                if name.endswith("lora_gate"):
                    p.copy_(torch.where(p.abs() <= XI, 0.0, p - XI * p.sign()))


@pytest.mark.first
def test_every_step_is_that_of_the_equations(tmp_path):
    run = run_of(tmp_path)
    plain = Plain(classifier(), weights(run.model))
    together = {key: torch.stack([row[key] for row in rows()]) for key in rows()[0]}
    seen = []

    class Compare(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            plain.step(state.global_step - 1, together)
            ours = weights(kwargs["model"])
            assert ours.keys() == plain.values.keys()
            for name, value in ours.items():
                assert_close(value, plain.values[name].detach())
            seen.append(sum(int((v == 0).sum()) for n, v in ours.items() if "lora_gate" in n))

    run.add_callback(Compare())
    run.train()
    assert len(seen) == STEPS
    assert 0 < seen[-1] < 2 * 6 * RANK
    norms = [name for name in plain.values if "LayerNorm" in name]
    assert len(norms) == 2 * 2 * 2
    for name in norms:
        moved = plain.values[name].detach() - classifier().get_parameter(name)
        assert moved.abs().max() > 0.01
