"""Every method on a fake GPU: no tensor of the CPU meets one of the GPU, and the host never waits.

``fake_gpu.py`` makes the GPU; benchmarks/NOTES.md says what it cannot show.
"""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import ENCODER_DECODERS, inputs
from conftest import TINY
from fake_gpu import GPU, Fp64, HostRead, fake_gpu, move
from method_cases import defined, placed, with_labels
from peft import get_peft_model
from peft.tuners.shira import Linear as ShiraLinear
from stacks import BESIDE, config_of, lmam
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from transformers import StaticCache, TrainerControl, TrainerState

from lorada import METHODS, LmamConfig
from lorada.attention import map_term
from lorada.inference.perplexity import window_losses
from lorada.methods.callbacks import ist, owlore
from lorada.methods.lookup import method_named
from lorada.training.callbacks import refuse_broken_loss
from lorada.training.models.labelled_loss import LabelledLoss
from lorada.tuners.stack.stack import LoradaModel

LABELS = "lorada/training/models/labelled_loss.py:__call__"
LOSS = "lorada/training/callbacks.py:refuse_broken_loss"
RESTARTS = "lorada/attention/positions.py:_starts"
PACKED = "lorada/attention/positions.py:_packed_by_restart"
BUDGET = "peft/tuners/adalora/layer.py:mask_to_budget"

# The reads that may be. Those of lorada are made once for a batch, whatever the number of layers.
ALLOWED = {
    LABELS: None,  # how many tokens have a label is the size of what the head gets
    LOSS: True,  # a loss of NaN must stop the run before the weights change
    RESTARTS: False,  # position_ids may separate packed sequences, each of which has a map
    BUDGET: 0.0,  # PEFT ranks all ranks of AdaLoRA and saves which are left
}
# Sequences of a row and their longest are the size of their maps.
ALLOWED_PACKED = {**ALLOWED, RESTARTS: True, PACKED: 8 + 3}
ROWS, TOKENS = 3, 8
NO_PLAN = SimpleNamespace(callbacks=(), optimizer=None)


def in_attention(name: str) -> bool:
    """Whether a method changes attention itself, which depends on the mask."""
    parts = {"lmam", "prefix"} & {*method_named(name).part_names}
    return bool(parts) or name == "longlora"


def batch(model: str, padded: bool, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Rows of tokens, with a mask that may hide any of them or without one."""
    given = {"input_ids": torch.zeros(ROWS, tokens, dtype=torch.long, device=GPU)}
    if padded:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    if model in ENCODER_DECODERS:
        given["decoder_input_ids"] = given["input_ids"][:, :6]
    return given


@torch.no_grad()
def answer(model: Any, given: dict[str, Tensor]) -> None:
    """Read a prompt and then, in a decoder, two single tokens behind it."""
    if model.config.model_type in ("bert", "deberta-v2"):
        model(**given)
        return
    found = model(**given, use_cache=True)
    for _ in range(2):
        token = found.logits[:, -1:].argmax(-1)
        if "decoder_input_ids" in given:
            kept = {name: given[name] for name in given if name == "attention_mask"}
            read = {"encoder_outputs": (found.encoder_last_hidden_state,)}
            given = {**kept, **read, "decoder_input_ids": token}
        else:
            given = {**given, "input_ids": token}
            if "attention_mask" in given:
                mask = given["attention_mask"]
                given["attention_mask"] = torch.cat([mask, mask.new_ones(ROWS, 1)], 1)
        found = model(**given, cache=found.past_key_values, use_cache=True)


def loss_of(model: nn.Module, kind: str, given: dict[str, Tensor]) -> Tensor:
    """As a run computes it: a decoder's without all logits."""
    labelled = with_labels(kind, given)
    if kind == "llama":
        loss, stack = LabelledLoss(model, plain=True)(model, labelled)[0].mean(), model.base_model
        return stack.regularised(loss) if isinstance(stack, LoradaModel) else loss
    return model(**labelled).loss


def train(model: nn.Module, kind: str, given: dict[str, Tensor], plan: Any = NO_PLAN) -> None:
    """One step of a run: loss, gradients, update, and what the method's callbacks do in it."""
    args: Any = SimpleNamespace(
        fsdp=[],
        device=GPU, seed=0, world_size=1, output_dir="-", fp16=False, deepspeed=None,
        gradient_checkpointing=False, gradient_checkpointing_kwargs=None, num_train_epochs=1,
        learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.1,
    )  # fmt: skip
    state = TrainerState(max_steps=10, num_train_epochs=1)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    make = plan.optimizer or (lambda model, args: torch.optim.AdamW(trained))
    optimizer = make(model, args)

    given_to = {"model": model, "optimizer": optimizer, "train_dataloader": None}

    def tell(*events: str) -> None:
        for event in events:
            for callback in plan.callbacks:
                happened = getattr(callback, event)
                happened(args, state, TrainerControl(), **given_to)

    model.train()
    tell("on_train_begin")
    state.global_step = 2  # ranks are pruned only after the first steps
    tell("on_step_begin")
    loss = loss_of(model, kind, given)
    loss.backward()
    refuse_broken_loss(loss, args, state)
    tell("on_pre_optimizer_step")
    optimizer.step()
    tell("on_optimizer_step", "on_step_end")
    found = [weight.grad for weight in trained if weight.grad is not None]
    assert found
    assert all(gradient.device == GPU for gradient in found)


def reads_of(
    model: nn.Module, kind: str = "llama", *, padded: bool = True, tokens: int = TOKENS,
    plan: Any = NO_PLAN, answers: bool = True,
) -> Counter[str]:  # fmt: skip
    """What the host reads in a step of training; for an answer it reads nothing."""
    with fake_gpu(ALLOWED) as gpu:
        move(model)
        if answers:
            answer(model, batch(kind, padded, tokens))
            assert not gpu.reads
        train(model, kind, batch(kind, padded, tokens), plan)
    return gpu.reads


@pytest.fixture(autouse=True)
def _without_numbers(monkeypatch):
    """Fake layers cannot be weighed and drawn, which happens on the CPU or before training.

    Sparse tensors cannot be fake. PEFT adds SHiRA's to a weight; here as much is added dense.
    """
    monkeypatch.setattr(ist, "draw", lambda weights, count, generator: [*range(count)])
    monkeypatch.setattr(owlore.OwLoreCallback, "_measured", lambda *_: [1.0, 1.0])
    monkeypatch.setattr(owlore.OwLoreCallback, "_activate", lambda self, *_: self.train_only([0]))

    def dense(self, adapter):
        entries = self.shira_weight[adapter]
        rest = entries.new_zeros(self.out_features * self.in_features - len(entries))
        return torch.cat([entries, rest]).view(self.out_features, self.in_features)

    monkeypatch.setattr(ShiraLinear, "get_delta_weight", dense)


# Every method, on a decoder if it is defined there; the further routes of attention.
PLACED = [(name, "llama" if defined(name, "llama") else "bert") for name in METHODS]
PLACED += [(name, "bert") for name in ("lorada_la", "prefix", "houlsby")]
PLACED += [
    ("lorada_la", "deberta_v2"),
    ("lorada_la", "bart"),
    ("prefix", "bart"),
    ("lorada_la", "t5"),
]
# A method without a part in attention is the same with a mask and without one.
CASES = [
    (name, model, padded)
    for name, model in PLACED
    for padded in (True, False)
    if padded or (in_attention(name) and model in ("llama", "bert"))
]


def ids(part: str | bool) -> str:
    return part if isinstance(part, str) else "padded" if part else "unpadded"


@pytest.mark.parametrize(("name", "model", "padded"), CASES, ids=ids)
def test_a_method_answers_and_trains(name, model, padded):
    adapted, plan = placed(name, model, inputs(model))
    # A step of training has the forward pass of methods that are not in attention too.
    how = {"padded": padded, "plan": plan, "answers": in_attention(name)}
    reads = reads_of(adapted, model, **how)
    assert (reads.pop(BUDGET, 0) > 0) == (name == "adalora")
    assert reads == Counter([LOSS] + [LABELS] * (model == "llama"))


@pytest.mark.parametrize("stack", [stack for stack in BESIDE if stack not in METHODS])
def test_a_stack_answers_and_trains(stack):
    model = get_peft_model(TINY["llama"](), config_of(stack, "llama")).eval()
    assert reads_of(model) == Counter([LABELS, LOSS])


# More tokens than a map of 6, and than a block of the product with a causal map.
LONG = 80
MAPS = {
    "short": {"length": 6},
    "long": {"length": 64},
    "at the end": {"length": 6, "align": "end"},
    **{name: {"length": 6, "ablation": name} for name in ("no_negative", "softmax", "full_rank")},
}


@pytest.mark.parametrize(
    ("form", "padded"),
    [*((form, True) for form in MAPS), ("long", False), ("no_negative", False)],
    ids=ids,
)
def test_a_map_works_on_long_rows(form, padded):
    model = get_peft_model(TINY["llama"](), LmamConfig(**MAPS[form])).eval()
    assert reads_of(model, padded=padded, tokens=LONG) == Counter([LABELS, LOSS])


@pytest.mark.parametrize("name", ["lorada_la", "longlora"])
def test_packed_rows_train(name):
    adapted, plan = placed(name, "llama", inputs("llama"))
    with fake_gpu(ALLOWED_PACKED) as gpu:
        move(adapted)
        positions = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=GPU)
        given = {**batch("llama", padded=False), "position_ids": positions}
        train(adapted, "llama", {**given, "use_cache": False}, plan)
    assert gpu.reads == Counter([LABELS, LOSS, RESTARTS, PACKED])


WINDOWS = "lorada/inference/perplexity.py:window_losses"


def test_losses_of_windows_need_no_fp64_of_the_device(monkeypatch):
    # torch asks the device itself for the loss of three dimensions.
    monkeypatch.setattr(F, "cross_entropy", lambda logits, targets, reduction: logits[:, 0])
    with fake_gpu({WINDOWS: None}) as gpu:  # losses are summed in fp64 on the CPU
        logits = torch.zeros(2, 600, 9, dtype=torch.bfloat16, device=GPU)
        ids = torch.zeros(2, 600, dtype=torch.long, device=GPU)
        losses = window_losses(logits, ids)
    assert (losses.dtype, losses.device.type) == (torch.float64, "cpu")
    assert gpu.reads == {WINDOWS: 2}


def test_a_graph_that_is_captured_reads_no_number(monkeypatch):
    """Neither a prompt with positions of its own nor a token behind a static cache."""
    model = get_peft_model(TINY["llama"](), LmamConfig(**MAPS["long"])).eval()
    with fake_gpu({}), torch.no_grad():
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        move(model)
        cache = StaticCache(config=model.config, max_cache_len=32)
        mask = torch.ones(ROWS, TOKENS, dtype=torch.long, device=GPU)
        ids, positions = torch.zeros_like(mask), torch.zeros_like(mask)
        given = {"attention_mask": mask, "use_cache": True, "cache": cache}
        model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        model(input_ids=ids, position_ids=positions, **given)
        model(input_ids=ids[:, :1], position_ids=positions[:, :1], **given)


FAULTS = {
    "a CPU tensor": lambda term: term + torch.ones(1),
    "item": lambda term: term * term.sum().item(),
    "a condition": lambda term: term if term.any() else -term,
    "nonzero": lambda term: term.nonzero(),
    "a boolean mask": lambda term: term[term > 0],
    "a value under a mask": lambda term: term.index_put((term > 0,), term.new_ones(())),
    "a copy": lambda term: term.cpu(),
    "fp64": lambda term: term.double(),
    "repeats": lambda term: term.repeat_interleave(torch.ones_like(term[:, 0, 0, 0]).long(), 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_attention_is_found(fault, monkeypatch):
    plain = map_term.Term.compute
    broken = lambda *given: FAULTS[fault](plain(*given))  # noqa: E731
    monkeypatch.setattr(map_term.Term, "compute", broken)
    model = get_peft_model(TINY["llama"](), lmam()).eval()
    errors = {"a CPU tensor": FakeTensorDeviceMismatchError, "fp64": Fp64}
    with fake_gpu(ALLOWED):
        move(model)
        said = None if fault == "a CPU tensor" else "map_term.py:add_term"
        with pytest.raises(errors.get(fault, HostRead), match=said):
            answer(model, batch("llama", padded=True))


def test_a_tensor_that_stays_behind_when_its_model_moves_is_found():
    model = get_peft_model(TINY["llama"](), lmam()).eval()
    maps = next(each for name, each in model.named_modules() if name.endswith("lmam"))
    plain, own = maps.maps, torch.ones(1)  # neither a parameter nor a buffer
    maps.maps = lambda: [replace(each, factors=(each.factors[0] * own,)) for each in plain()]
    with fake_gpu(ALLOWED):
        move(model)
        with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
            answer(model, batch("llama", padded=True))
