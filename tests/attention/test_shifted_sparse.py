"""Shifted sparse attention: against loops over heads and groups, in models and in the Trainer."""

import math
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES
from callback_runs import losses, rows, trainer
from conftest import TINY, assert_close
from exact_cells import counted, own_rows, pad
from peft import LoraConfig
from stacks import assert_loads, lmam, logits, moved
from torch import Tensor, nn

from lorada import LoradaConfig
from lorada.attention.call import AttentionCall
from lorada.attention.interface import CROSS_ATTENTION as CROSS
from lorada.attention.interface import install
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.attention.with_parts import SHIFTED
from lorada.methods.callbacks.longlora import ShiftedAttention

pytestmark = pytest.mark.fp64

KERNELS = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


def attend_by_hand(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    """(T, D) of each head: causal softmax in each segment, one after the other."""
    heads, tokens, width = query.shape
    out = torch.zeros_like(query)
    for head in range(heads):
        borders = list(range(0, tokens, size))
        if head >= heads - heads // 2:
            borders = [0, *range(size // 2, tokens, size)]
        for start, stop in zip(borders, [*borders[1:], tokens], strict=True):
            for t in range(start, stop):
                scores = key[head, start : t + 1] @ query[head, t] / math.sqrt(width)
                out[head, t] = torch.softmax(scores, 0) @ value[head, start : t + 1]
    return out


@KERNELS
@pytest.mark.parametrize(
    ("heads", "tokens", "size"),
    [(4, 16, 4), (3, 16, 4), (1, 8, 4), (4, 14, 4), (2, 11, 3)],
    ids=["even", "odd-heads", "one-head", "last-group-shorter", "odd-size"],
)
def test_each_half_of_the_heads_attends_within_its_own_groups(heads, tokens, size, kernel):
    query, key, value = (torch.randn(heads, tokens, 6).double() for _ in range(3))
    mask = ShiftedGroups(size).mask(call_of(kernel, query[None], key[None]))
    if kernel == "sdpa":
        assert mask.dtype == torch.bool
        mask = torch.zeros(()).double().masked_fill(~mask, float("-inf"))
    scores = query @ key.mT / math.sqrt(6) + mask[0]

    assert_close(torch.softmax(scores, -1) @ value, attend_by_hand(query, key, value, size))


def call_of(kernel: str, query: Tensor, key: Tensor, mask: Tensor | None = None) -> AttentionCall:
    """A decoder's call under a kernel that need not be there."""
    module = nn.Module()
    module.config = SimpleNamespace(_attn_implementation=kernel)
    return AttentionCall.read(module, (query, key, key), mask, {})


def shifted(size: int | None = None, **changes) -> nn.Module:
    """A tiny LLaMA in training mode with shifted sparse attention."""
    install()
    model = TINY["llama"](**changes).train()
    for layer in model.model.layers:
        setattr(layer.self_attn, SHIFTED, ShiftedGroups(size))
    return model


def tokens(length: int = 16, samples: int = 1) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (samples, length))}


@KERNELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_move_no_group(kernel, side):
    model = shifted(4, attn_implementation=kernel)
    rows = [tokens(length)["input_ids"][0] for length in (13, 16)]
    ids, mask = pad(rows, side)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": counted(mask)}
    padded = logits(model, inputs)
    assert padded.isfinite().all()
    for found, row in zip(own_rows(padded, mask), rows, strict=True):
        assert_close(found, logits(model, {"input_ids": row[None]})[0])


def test_groups_begin_anew_with_each_sequence_of_a_packed_row():
    model, rows = shifted(4), [tokens(length)["input_ids"] for length in (7, 9)]
    places = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    packed = {"input_ids": torch.cat(rows, 1), "position_ids": places, "use_cache": False}

    expected = torch.cat([logits(model, {"input_ids": row}) for row in rows], 1)
    assert_close(logits(model, packed), expected)


@pytest.mark.parametrize("length", [16, 13])
def test_without_a_size_a_group_is_a_quarter_of_the_length(length):
    inputs = tokens(length)
    assert torch.equal(logits(shifted(), inputs), logits(shifted(4), inputs))


@pytest.mark.parametrize("align", ["start", "end"])
def test_a_map_is_added_outside_of_the_groups(align):
    """One layer without its FFN: the difference that the map makes is that of full attention."""
    inputs, terms = tokens(), []
    for size in (None, 4):
        model = moved(TINY["llama"](num_hidden_layers=1), lmam(length=10, align=align))
        attention = model.get_base_model().model.layers[0].self_attn
        if size:
            setattr(attention, SHIFTED, ShiftedGroups(size))
        outputs = []
        attention.register_forward_hook(lambda m, a, out, kept=outputs: kept.append(out[0]))
        logits(model.train(), inputs)
        with model.disable_adapter():
            logits(model, inputs)
        terms.append(outputs[0] - outputs[1])
    assert terms[0].abs().max() > 0.1
    assert_close(terms[1], terms[0])


def test_a_model_that_is_scored_attends_to_all_tokens_as_if_it_had_no_groups():
    model, inputs = shifted(4), tokens()
    sparse = logits(model, inputs)
    scored = logits(model.eval(), inputs)
    for layer in model.model.layers:
        delattr(layer.self_attn, SHIFTED)
    assert torch.equal(scored, logits(model, inputs))
    assert not torch.allclose(sparse, scored, atol=0.01)


def test_kernels_without_masks_are_refused():
    query = torch.randn(1, 4, 8, 6)
    for kernel, mask in (("flash_attention_2", None), ("flex_attention", None),
                         ("sdpa", torch.ones(1, 8))):  # fmt: skip
        with pytest.raises(ValueError, match="use attn_implementation='sdpa' or 'eager'"):
            ShiftedGroups(4).mask(call_of(kernel, query, query, mask))


def longlora(**options) -> LoraConfig:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return LoraConfig(
        r=8, lora_alpha=16, target_modules=names, modules_to_save=["embed_tokens", "norm"],
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip


@pytest.mark.parametrize("config", [longlora, lambda: LoradaConfig(parts=[lmam(), longlora()])],
                         ids=["alone", "with-a-map"])  # fmt: skip
def test_training_is_sparse_evaluation_is_not_and_the_adapter_loads(tmp_path, config):
    groups, seen = ShiftedAttention(4), []

    def watch(module, args):
        seen.append((module.training, getattr(module, SHIFTED, None)))

    evaluated = {"held_out": rows()[:2], "eval_strategy": "steps", "eval_steps": 6}
    run = trainer(config(), tmp_path, groups, **evaluated)
    model = run.model
    attention = model.get_base_model().model.layers[0].self_attn
    attention.register_forward_pre_hook(watch)
    run.train()

    assert losses(run)[-1] < 0.8 * losses(run)[0]
    assert (True, groups.groups) in seen
    assert (False, groups.groups) in seen
    assert not hasattr(attention, SHIFTED)
    assert_loads(model.eval(), TINY["llama"](), tmp_path / "adapter", tokens())


def test_models_whose_attention_takes_no_mask_are_refused():
    with pytest.raises(ValueError, match=r"needs attention that .* dispatches; this .* has none"):
        ShiftedAttention().on_train_begin(None, None, None, model=ARCHITECTURES["deberta"]())


@KERNELS
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("roberta", {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0,
                     "attention_probs_dropout_prob": 0.0}),
        ("bart", {"encoder_layers": 1, "dropout": 0.0}),
        ("t5", {"num_layers": 1, "dropout_rate": 0.0}),
    ],
)  # fmt: skip
def test_groups_of_an_encoder_see_both_ways_within_them(name, sizes, kernel):
    model = ARCHITECTURES[name](**sizes, attn_implementation=kernel).train()
    ShiftedAttention(4).on_train_begin(None, None, None, model=model)
    assert not any(SHIFTED in vars(m) for n, m in model.named_modules() if n.endswith(CROSS))
    encoder = model.roberta if name == "roberta" else model.get_encoder()
    row = tokens()["input_ids"]
    before = encoder(input_ids=row).last_hidden_state[0]
    seen = torch.zeros(16, 16, dtype=torch.bool)
    for place in range(16):
        other = row.clone()
        other[0, place] = 95 - other[0, place]
        after = encoder(input_ids=other).last_hidden_state[0]
        seen[:, place] = (after - before).abs().amax(-1) > 1e-6
    near = [(torch.arange(16) + start) // 4 for start in (0, 2)]
    assert torch.equal(seen, torch.stack([g[:, None] == g for g in near]).any(0))
