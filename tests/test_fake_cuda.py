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
from fake_gpu import GPU, Allowed, Fp64, HostRead, Launches, fake_gpu, move
from method_cases import defined, form_of, placed, with_labels
from peft import get_peft_model
from peft.tuners.shira import Linear as ShiraLinear
from stacks import BESIDE, config_of, lmam
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from transformers import DynamicCache, StaticCache, TrainerControl, TrainerState

from lorada import METHODS, LmamConfig
from lorada.attention import attend
from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall, CallShape
from lorada.inference.perplexity import window_losses
from lorada.methods.callbacks import ist, owlore
from lorada.methods.lookup import method_named
from lorada.runs.models.labelled_loss import LabelledLoss
from lorada.runs.training.callbacks import refuse_broken_loss
from lorada.runs.training.training_memory import _Alive as Alive
from lorada.tuners.lmam import bake

LABELS = "lorada/runs/models/labelled_loss.py:__call__"
LOSS = "lorada/runs/training/callbacks.py:refuse_broken_loss"
RULE = "lorada/attention/distance_map.py:_follows_rule"
RESTARTS = "lorada/attention/locate.py:_restarts"
PACKED = "lorada/attention/locate.py:_packed_by_restart"
BUDGET = "peft/tuners/adalora/layer.py:mask_to_budget"

# The reads that may be. Those of lorada are made once for a batch, whatever the number of layers.
ALLOWED = {
    LABELS: Allowed("how many tokens have a label is the size of what the head gets"),
    LOSS: Allowed("a loss of NaN must stop the run before the weights change", True),
    RULE: Allowed("maps by distance cost less where the mask hides nothing else", True),
    RESTARTS: Allowed("position_ids may separate packed sequences, each of which has a map", False),
    BUDGET: Allowed("PEFT ranks all ranks of AdaLoRA and saves which are left", 0.0),
}
ALLOWED_PACKED = ALLOWED | {
    RESTARTS: Allowed("as above; here they do", True),
    PACKED: Allowed("sequences of a row and their longest: the size of their maps", 8 + 3),
}
ROWS, TOKENS = 3, 8
NO_PLAN = SimpleNamespace(callbacks=(), optimizer=None)


def cases() -> list[tuple[str, str]]:
    """Every method, on a decoder if it is defined there; the further routes of attention."""
    every = [(name, "llama" if defined(name, "llama") else "bert") for name in METHODS]
    forms = [name for name in METHODS if form_of(method_named(name))]
    routes = {
        "bert": ("lorada_la", "prefix", "houlsby"),
        "deberta_v2": ("lorada_la", "gain_query", *forms),
        "bart": ("lorada_la", "prefix", "lmam_distance"),
        "t5": ("lorada_la",),
    }
    return every + [(name, model) for model, names in routes.items() for name in names]


def in_attention(name: str) -> bool:
    """Whether a method changes attention itself, which depends on the mask."""
    parts = {"lmam", "prefix"} & {*method_named(name).part_names}
    return bool(parts) or name in ("gain_query", "longlora")


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


def loss_of(model: nn.Module, kind: str, given: dict[str, Tensor], own: bool) -> Tensor:
    """As a run computes it: a decoder's without all logits, unless the model adds to its loss."""
    labelled = with_labels(kind, given)
    if kind == "llama" and not own:
        return LabelledLoss(model, plain=True)(model, labelled)[0].mean()
    return model(**labelled).loss


def train(
    model: nn.Module, kind: str, given: dict[str, Tensor], plan: Any = NO_PLAN, own: bool = False
) -> None:
    """One step of a run: loss, gradients, update, and what the method's callbacks do in it."""
    args: Any = SimpleNamespace(
        device=GPU, seed=0, world_size=1, output_dir="-", fp16=False, deepspeed=None,
        gradient_checkpointing=False, gradient_checkpointing_kwargs=None, num_train_epochs=1,
        learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.1,
    )  # fmt: skip
    state = TrainerState(max_steps=10, global_step=2, num_train_epochs=1)
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
    tell("on_train_begin", "on_step_begin")
    loss = loss_of(model, kind, given, own)
    loss.backward()
    refuse_broken_loss(loss, args, state)
    tell("on_pre_optimizer_step")
    optimizer.step()
    tell("on_optimizer_step", "on_step_end")
    found = [weight.grad for weight in trained if weight.grad is not None]
    assert found
    assert all(gradient.device == GPU for gradient in found)


def reads_of_map(name: str, model: str, padded: bool) -> Counter[str]:
    """A map by distance reads each mask of its model once; BART has two."""
    has_form = name in METHODS and form_of(method_named(name)) is not None
    return +Counter({RULE: int(has_form and padded) * (2 if model == "bart" else 1)})


def reads_of_step(name: str, model: str, padded: bool) -> Counter[str]:
    own_loss = model != "llama" or name == "adalora"
    once = Counter({LOSS: 1, LABELS: int(not own_loss)})
    return once + reads_of_map(name, model, padded)


def of_lorada(reads: Counter[str]) -> Counter[str]:
    return Counter({place: reads[place] for place in reads if place.startswith("lorada/")})


@pytest.fixture(autouse=True)
def _layers_without_numbers(monkeypatch):
    """Fake layers cannot be weighed and drawn, which happens on the CPU or before training."""
    monkeypatch.setattr(ist, "draw", lambda weights, count, generator: [*range(count)])
    monkeypatch.setattr(owlore.OwLoreCallback, "_measured", lambda *_: [1.0, 1.0])
    monkeypatch.setattr(owlore.OwLoreCallback, "_activate", lambda self, *_: self._switch.only([0]))


@pytest.fixture(autouse=True)
def _dense_shira(monkeypatch):
    """Sparse tensors cannot be fake. PEFT adds SHiRA's to a weight; here as much is added dense."""

    def dense(self, adapter):
        entries = self.shira_weight[adapter]
        rest = entries.new_zeros(self.out_features * self.in_features - len(entries))
        return torch.cat([entries, rest]).view(self.out_features, self.in_features)

    monkeypatch.setattr(ShiraLinear, "get_delta_weight", dense)


# A method without a part in attention is the same with a mask and without one.
CASES = [
    (name, model, padded)
    for name, model in cases()
    for padded in (True, False)
    if padded or (in_attention(name) and model in ("llama", "bert"))
]


def ids(part: str | bool) -> str:
    return part if isinstance(part, str) else "padded" if part else "unpadded"


# A step of training has the forward pass of the others too.
@pytest.mark.parametrize(
    ("name", "model", "padded"), [case for case in CASES if in_attention(case[0])], ids=ids
)
def test_a_method_answers(name, model, padded):
    adapted, _ = placed(name, model, inputs(model))
    with fake_gpu(ALLOWED) as gpu:
        move(adapted)
        answer(adapted, batch(model, padded))
    assert gpu.reads == reads_of_map(name, model, padded)


@pytest.mark.parametrize(("name", "model", "padded"), CASES, ids=ids)
def test_a_method_trains(name, model, padded):
    adapted, plan = placed(name, model, inputs(model))
    with fake_gpu(ALLOWED) as gpu:
        move(adapted)
        train(adapted, model, batch(model, padded), plan, own=name == "adalora")
    assert of_lorada(gpu.reads) == reads_of_step(name, model, padded)
    assert gpu.reads.keys() - of_lorada(gpu.reads).keys() == (
        {BUDGET} if name == "adalora" else set()
    )


@pytest.mark.parametrize("stack", [stack for stack in BESIDE if stack not in METHODS])
def test_a_stack_answers_and_trains(stack):
    model = get_peft_model(TINY["llama"](), config_of(stack, "llama")).eval()
    with fake_gpu(ALLOWED) as gpu:
        move(model)
        answer(model, batch("llama", padded=True))
        assert not gpu.reads
        train(model, "llama", batch("llama", padded=True), own=stack == "adalora")
    assert gpu.reads == reads_of_step(stack, "llama", True)


# More tokens than a map of 6, and than a block of the product with a causal map.
LONG = 80
MAPS = {
    "short": {"length": 6},
    "long": {"length": 64},
    "at the end": {"length": 6, "align": "end"},
    "raw": {"length": 6, "positions": "raw"},
    **{name: {"length": 6, "ablation": name} for name in ("no_negative", "softmax", "full_rank")},
    "distance": {"form": "distance"},
}


UNPADDED = ("long", "no_negative", "distance")


@pytest.mark.parametrize(
    ("form", "padded"),
    [*((form, True) for form in MAPS), *((form, False) for form in UNPADDED)],
    ids=ids,
)
def test_a_map_works_on_long_rows(form, padded):
    model = get_peft_model(TINY["llama"](), LmamConfig(**MAPS[form])).eval()
    with fake_gpu(ALLOWED) as gpu:
        move(model)
        answer(model, batch("llama", padded, LONG))
        train(model, "llama", batch("llama", padded, LONG))
    has_form = "form" in MAPS[form]
    assert gpu.reads == Counter([LABELS, LOSS, *[RULE] * (2 * has_form * padded)])


@pytest.mark.parametrize("name", ["lorada_la", "lmam_distance", "longlora"])
def test_packed_rows_train(name):
    adapted, plan = placed(name, "llama", inputs("llama"))
    with fake_gpu(ALLOWED_PACKED) as gpu:
        move(adapted)
        positions = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=GPU)
        given = {**batch("llama", padded=False), "position_ids": positions}
        train(adapted, "llama", {**given, "use_cache": False}, plan)
    assert gpu.reads == Counter([LABELS, LOSS, RESTARTS, PACKED])


def decoder_of(layers: int, mapped: bool, **options) -> nn.Module:
    """A decoder in bf16 with the heads of LLaMA-3-8B, and a map of 128 tokens or none."""
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = TINY["llama"](hidden_size=256, max_position_embeddings=2048, **sizes)
        model = model.to(torch.bfloat16).requires_grad_(False)
        return get_peft_model(model, LmamConfig(**options)) if mapped else model


def rows_of(size: int, tokens: int, padded: bool) -> dict[str, Tensor]:
    mask = torch.ones(size, tokens, dtype=torch.long, device=GPU)
    return {"attention_mask": mask} if padded else {}


def launches_of_step(model: nn.Module, size: int, tokens: int, padded: bool) -> list[int]:
    """The launches of a forward and of a backward pass."""
    with fake_gpu({}):
        move(model)
        states = torch.zeros(size, tokens, 256, device=GPU, dtype=torch.bfloat16)
        states.requires_grad_()
        with Launches() as forward:
            # With a cache: without one transformers makes a mask of tensors that have no numbers.
            found = model.train()(
                inputs_embeds=states, use_cache=True, **rows_of(size, tokens, padded)
            )
        with Launches() as backward:
            found.logits.sum().backward()
        return [forward.count, backward.count]


def launches_of_token(
    model: nn.Module, size: int, tokens: int, padded: bool, baked: bool = True, shortest: int = -1
) -> list[int]:
    """The launches of a token behind a prompt, whose shortest row is known, and another token."""
    cache = DynamicCache(config=model.config)
    with fake_gpu({}) as gpu, torch.no_grad():
        move(model.eval())
        if baked:
            bake(model)
        for seen, new in ((tokens, tokens), (tokens + 1, 1), (tokens + 2, 1)):
            ids = torch.zeros(size, new, dtype=torch.long, device=GPU)
            gpu.sent = shortest if shortest < 0 else shortest + seen - tokens
            with Launches() as token:
                model(input_ids=ids, cache=cache, **rows_of(size, seen, padded))
        return [token.count]


def added_by_a_layer(launches: Any, *given: Any, **options: Any) -> list[float]:
    """The launches by which a layer with a map has more than one without."""
    few, many = (
        [launches(decoder_of(layers, mapped, **options), *given) for mapped in (True, False)]
        for layers in (1, 3)
    )
    one, three = ([a - b for a, b in zip(*both, strict=True)] for both in (few, many))
    return [(b - a) / 2 for a, b in zip(one, three, strict=True)]


@pytest.mark.parametrize("options", [{}, {"heads": 8, "inverse_scale": 255.0}], ids=str)
@pytest.mark.parametrize(
    ("tokens", "padded", "most"), [(128, True, (15, 25)), (512, True, (15, 25)),
                                   (128, False, (8, 17)), (512, False, (9, 18))],
)  # fmt: skip
def test_a_map_takes_few_launches_of_a_training_step(tokens, padded, most, options):
    forward, backward = added_by_a_layer(launches_of_step, 8, tokens, padded, **options)
    more = 3 if options else 0  # scale and tiles of the map, and the scale once more in backward
    assert forward <= most[0] + more
    assert backward <= most[1] + more


@pytest.mark.parametrize("padded", [True, False], ids=ids)
def test_a_map_takes_few_launches_of_a_token_under_it(padded):
    (launches,) = added_by_a_layer(launches_of_token, 32, 64, padded)
    assert launches <= 7


@pytest.mark.parametrize("baked", [True, False], ids=["baked", "factors"])
@pytest.mark.parametrize("padded", [True, False], ids=ids)
def test_a_map_takes_no_launch_of_a_token_that_every_row_has_past_it(padded, baked):
    assert added_by_a_layer(launches_of_token, 32, 200, padded, baked, 127) == [0]
    (under,) = added_by_a_layer(launches_of_token, 32, 200, True, baked, 126)
    assert under > 0  # the second token is the last under the map


def bytes_of_term(size: int, tokens: int, packed: int, monkeypatch) -> tuple[int, int]:
    """The most bytes that a map needs beside its call in a forward and in a backward pass."""
    last = (tokens // packed - 1) * tokens + packed - 1  # the last sequence, and the longest
    read = torch.ops.aten._local_scalar_dense.default
    counted = Alive.__torch_dispatch__

    def answered(alive, func, types, args=(), kwargs=None):
        if func is not read:
            return counted(alive, func, types, args, kwargs)
        return packed < tokens if args[0].dtype == torch.bool else last

    monkeypatch.setattr(Alive, "__torch_dispatch__", answered)
    with fake_gpu({}):
        on = {"device": GPU, "requires_grad": True}
        factors = torch.zeros(32, 128, 2, **on), torch.zeros(32, 2, 128, **on)
        value = torch.zeros(size, tokens, 8, 128, dtype=torch.bfloat16, **on)
        output = torch.zeros(size, tokens, 32, 128, dtype=torch.bfloat16, **on)
        kwargs = {"position_ids": torch.zeros(size, tokens, dtype=torch.long, device=GPU)}
        mask = torch.ones(size, 1, tokens, tokens, dtype=torch.bool, device=GPU)
        call = AttentionCall(
            nn.Module(), CallShape(tokens, tokens, 32, True), value.transpose(1, 2),
            mask if packed < tokens else None, kwargs=kwargs,
        )  # fmt: skip
        own = AttentionMap(factors, 1.0, "start", "token", None)
        alive = Alive(besides=[])
        with alive:
            result = attend.add_maps(call, [own], output)
            forward, alive.peak = alive.peak, 0
            torch.autograd.grad(result, [*factors, value, output], torch.empty_like(result))
        return forward, alive.peak


@pytest.mark.parametrize("packed", [16, 32, 1000])
def test_maps_of_packed_rows_need_hardly_more_memory_than_those_of_the_rows(packed, monkeypatch):
    tokens = 2048 if packed < 1000 else 2000
    rows = 8 * tokens // packed
    apart = bytes_of_term(rows, packed, packed, monkeypatch)
    together = bytes_of_term(8, tokens, packed, monkeypatch)
    assert max(together) <= 1.2 * max(apart)
    assert together[0] <= 2 * apart[0]  # rows that are scattered are copied once more


WINDOWS = "lorada/inference/perplexity.py:window_losses"


def test_losses_of_windows_need_no_fp64_of_the_device(monkeypatch):
    # torch asks the device itself for the loss of three dimensions.
    monkeypatch.setattr(F, "cross_entropy", lambda logits, targets, reduction: logits[:, 0])
    with fake_gpu({WINDOWS: Allowed("losses are summed in fp64 on the CPU")}) as gpu:
        logits = torch.zeros(2, 600, 9, dtype=torch.bfloat16, device=GPU)
        ids = torch.zeros(2, 600, dtype=torch.long, device=GPU)
        losses = window_losses(logits, ids)
    assert (losses.dtype, losses.device.type) == (torch.float64, "cpu")
    assert gpu.reads == {WINDOWS: 2}


def test_fp64_on_a_device_that_may_lack_it_is_found():
    with fake_gpu({}), pytest.raises(Fp64):
        torch.zeros(2, device=GPU).double()


@pytest.mark.parametrize("form", ["long", "raw", "distance"])
def test_a_graph_that_is_captured_reads_no_number(form, monkeypatch):
    """Neither a prompt with positions of its own nor a token behind a static cache."""
    model = get_peft_model(TINY["llama"](), LmamConfig(**MAPS[form])).eval()
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
    "tolist": lambda term: term * term[0, 0, 0].tolist()[0],
    "a condition": lambda term: term if term.any() else -term,
    "nonzero": lambda term: term.nonzero(),
    "a boolean mask": lambda term: term[term > 0],
    "a value under a mask": lambda term: term.index_put((term > 0,), term.new_ones(())),
    "a copy": lambda term: term.cpu(),
    "repeats": lambda term: term.repeat_interleave(torch.ones_like(term[:, 0, 0, 0]).long(), 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_attention_is_found(fault, monkeypatch):
    plain = attend.map_term
    broken = lambda *given: FAULTS[fault](plain(*given))  # noqa: E731
    monkeypatch.setattr(attend, "map_term", broken)
    model = get_peft_model(TINY["llama"](), lmam()).eval()
    error = FakeTensorDeviceMismatchError if fault == "a CPU tensor" else HostRead
    with fake_gpu(ALLOWED):
        move(model)
        with pytest.raises(
            error, match=None if fault == "a CPU tensor" else "precision.py:recomputed"
        ):
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
