"""What a prefix does to attention: against its formula written out, PEFT's own, and the base."""

import copy
from inspect import signature

import architecture_cells
import pytest
import torch
from architecture_cells import batch_of
from architectures import ARCHITECTURES, ENCODER_DECODERS, logits
from conftest import TINY, assert_close, assert_same_gradients
from folders import refused
from method_cases import OWN_ATTENTION
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from stacks import lmam, moved
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorada import LmamConfig, LoradaConfig, PrefixConfig, explain
from lorada.attention.interface import dispatches
from lorada.attention.observation import observe
from lorada.tuners.prefix import PrefixLayer

pytestmark = pytest.mark.fp64

LENGTH = 3  # of the prefix, in tokens
DISPATCHING = [n for n in ARCHITECTURES if n not in (*OWN_ATTENTION, "deberta_v2")]
HOSTS = {"llama": "model.layers.0.self_attn", "bert": "bert.encoder.layer.0.attention.self"}
# Queries, key slots, and whether a mask comes along.
CALLS = {
    "whole": (7, 7, False),
    "whole, not causal": (7, 7, False),  # of a decoder, by what the call says
    "whole, masked": (7, 7, True),
    "one query": (1, 7, False),
    "one query, masked": (1, 7, True),
    "later chunk": (3, 7, True),
    "prefill of a static cache": (5, 7, False),
    "mask of a static cache": (5, 7, True),
}


def adapted(name: str) -> PeftModel:
    """A tiny model with a large prefix, the same on every call."""
    return architecture_cells.adapted(name, PrefixConfig(length=LENGTH, init_weights=False))


def prefix_layers(model: nn.Module) -> dict[str, PrefixLayer]:
    """By the name of the attention module."""
    modules = model.named_modules()
    return {n.removesuffix(".prefix"): m for n, m in modules if isinstance(m, PrefixLayer)}


def behind_a_prefix_reference(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], see: Tensor
) -> Tensor:
    """softmax(Q [P_k; K]ᵀ / √d) [P_v; V], head by head; (B, T, H, D)."""
    batch, heads, _, width = query.shape
    outputs = []
    for sample in range(batch):
        for head in range(heads):
            group = head * key.shape[1] // heads
            own = slice(group * width, (group + 1) * width)
            keys = torch.cat([prefix[0][:, own], key[sample, group]])
            values = torch.cat([prefix[1][:, own], value[sample, group]])
            scores = query[sample, head] @ keys.T / width**0.5
            hidden = ~see[sample % len(see), 0]
            scores[:, LENGTH:] = scores[:, LENGTH:].masked_fill(hidden, float("-inf"))
            outputs.append(scores.softmax(-1) @ values)
    return torch.stack(outputs).view(batch, heads, -1, width).transpose(1, 2)


def visible(causal: bool, queries: int, keys: int, masked: bool, first: int) -> Tensor:
    """(B or 1, 1, T, K) booleans; with a mask, the second of two samples has two pads."""
    see = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if causal and queries > 1:
        see = see.tril(first)
    if masked:
        pads = torch.tensor([[False] * keys, [False] * (keys - 2) + [True] * 2])
        see = see & ~pads[:, None, None]
    return see


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HOSTS)
def test_attention_behind_a_prefix_is_its_formula_with_its_gradients(name, implementation, call):
    queries, keys, masked = CALLS[call]
    model = adapted(name).double()
    module = model.base_model.model.get_submodule(HOSTS[name])
    module.config._attn_implementation = implementation
    said = {"is_causal": False} if call == "whole, not causal" else {}
    causal, groups = module.is_causal and not said, 2 if name == "llama" else 4
    see = visible(causal, queries, keys, masked, keys - queries if call == "later chunk" else 0)
    mask: Tensor | None = see if masked else None
    if call == "mask of a static cache":  # it has slots that the keys do not
        mask = torch.cat([see, torch.zeros(2, 1, queries, 4, dtype=torch.bool)], -1)
    if implementation == "eager" and (masked or causal):  # which knows no order without a mask
        mask = see if mask is None else mask
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e300)
    query, key, value = (
        torch.randn(2, size, tokens, 8, dtype=torch.float64, requires_grad=True)
        for size, tokens in ((4, queries), (groups, keys), (groups, keys))
    )
    layer = module.prefix
    prefix = layer.lora_key["default"], layer.lora_value["default"]
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    found, _ = attend(module, query, key, value, mask, scaling=8**-0.5, dropout=0.0, **said)
    expected = behind_a_prefix_reference(query, key, value, prefix, see)
    assert_same_gradients(found, expected, [query, key, value, *prefix])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_is_the_prefix_tuning_of_peft_where_peft_has_it(name):
    config = PrefixTuningConfig(num_virtual_tokens=LENGTH, task_type="CAUSAL_LM")
    theirs = get_peft_model(ARCHITECTURES[name](), config).eval()
    ours = adapted(name)
    embedding = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        embedding.normal_()
        columns = embedding.chunk(4, -1)  # of each layer, key then value
        for i, layer in enumerate(prefix_layers(ours).values()):
            layer.lora_key["default"].copy_(columns[2 * i])
            layer.lora_value["default"].copy_(columns[2 * i + 1])
    batch = batch_of(name)
    # PEFT counts the prefix as positions; ours has none, so the tokens are moved by hand.
    positions = torch.arange(LENGTH, LENGTH + batch["input_ids"].shape[1])[None]
    labels = batch["input_ids"]
    expected = theirs(**batch, labels=labels)
    found = ours(**batch, labels=labels, position_ids=positions)
    assert_close(found.logits, expected.logits)

    found.loss.backward()
    expected.loss.backward()
    gradients = [
        getattr(layer, part)["default"].grad
        for layer in prefix_layers(ours).values()
        for part in ("lora_key", "lora_value")
    ]
    assert_close(torch.cat(gradients, -1), embedding.grad)


@pytest.mark.parametrize("name", DISPATCHING)
def test_every_architecture_that_dispatches_has_a_prefix_in_every_attention(name):
    model, batch = adapted(name), batch_of(name)
    base = model.get_base_model()
    assert list(prefix_layers(base)) == [n for n, m in base.named_modules() if dispatches(m)]
    with model.disable_adapter():
        plain = logits(model, **batch)
    changed = logits(model, **batch)
    assert ((changed - plain).abs().amax(-1) > 0.01).all()
    if name != "gemma2":  # which refuses sdpa
        base.set_attn_implementation("eager")
        assert_close(logits(model, **batch), changed)


@pytest.mark.parametrize("name", ["bart", "mbart", "t5"])
def test_pads_of_a_source_change_nothing_behind_a_prefix(name):
    model, batch = adapted(name), batch_of(name)
    together = logits(model, **batch)
    alone = logits(
        model,
        input_ids=batch["input_ids"][1:2, :5],
        decoder_input_ids=batch["decoder_input_ids"][1:2],
    )
    assert_close(together[1:2], alone)


def test_the_prefix_is_visible_from_everywhere_behind_a_sliding_window():
    model = adapted("mistral")  # its window is 4
    model.get_base_model().set_attn_implementation("eager")
    layers = attentions(model, torch.arange(3, 15)[None])
    assert len(layers) == 2
    for shares in layers:
        assert (shares.sum(-1) < 0.999).all()  # the rest is the prefix's


def attentions(model: nn.Module, tokens: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(tokens, output_attentions=True).attentions


# A prefix and a map of one module.


def stacked(name: str, prefix: bool = True, **options) -> PeftModel:
    """A tiny eager model with a map, the same with and without a prefix before it."""
    base = TINY[name](attn_implementation="eager")
    torch.manual_seed(1)
    parts = [LmamConfig(length=6, inverse_scale=2.0, init_weights=False, **options)]
    parts += [PrefixConfig(length=LENGTH, init_weights=False)] if prefix else []
    return get_peft_model(base, LoradaConfig(parts=parts)).eval()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_explain_shows_the_share_of_each_token_behind_a_prefix(name):
    model = stacked(name)
    tokens = torch.arange(3, 13)[None]
    first = explain(model, {"input_ids": tokens})[0]
    model.get_base_model().get_submodule(HOSTS[name]).lmam._disable_adapters = True
    assert_close(first.softmax, attentions(model, tokens)[0])
    assert_close(first.fused, first.softmax + first.map)
    assert (first.softmax.sum(-1) < 0.999).all()


def test_a_prefix_of_another_width_is_refused():
    model = adapted("llama")
    layer = prefix_layers(copy.deepcopy(model))["base_model.model.model.layers.0.self_attn"]
    layer.lora_key["default"] = nn.Parameter(torch.zeros(LENGTH, 12))
    with pytest.raises(ValueError, match="12 wide does not fit attention with 2 key/value heads"):
        layer.host(torch.zeros(1, 2, 32), (torch.ones(1, 2, 8), torch.zeros(1, 2, 8)), None)


@pytest.mark.parametrize(
    ("kernel", "mask", "kwargs", "said"),
    [
        ("flash_attention_2", None, {}, "before the keys of flash_attention_2"),
        ("flex_attention", None, {}, "before the keys of flex_attention"),
        ("paged|sdpa", None, {"block_table": torch.zeros(1)}, r"before the keys of paged\|sdpa"),
        ("sdpa", torch.ones(2, 5, 5), {}, r"this form \(shape \(2, 5, 5\)\)"),
    ],
)
def test_calls_that_no_prefix_fits_are_refused_in_one_line(kernel, mask, kwargs, said):
    module = adapted("llama").base_model.model.get_submodule(HOSTS["llama"])
    module.config._attn_implementation_internal = kernel
    states = [torch.randn(2, heads, 5, 8) for heads in (4, 2, 2)]
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    remedy = "use attn_implementation='sdpa' or 'eager'"
    refused(f"{said}.*{remedy}", lambda: attend(module, *states, mask, **kwargs))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*ENCODER_DECODERS, "gpt2", "opt", "gemma3"])
def test_generation_with_a_cache_is_that_without(name, beams):
    model, batch = adapted(name), batch_of(name)
    batch.pop("decoder_input_ids", None)
    if "attention_mask" in batch and name not in ENCODER_DECODERS:
        batch = {key: value.flip(1) for key, value in batch.items()}  # pads on the left
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": beams, "do_sample": False}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    cached = model.generate(**batch, **options)
    plain = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert_close(torch.stack(cached.scores), torch.stack(plain.scores))


@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_the_map_never_sees_the_prefix(name):
    batch = batch_of(name)
    first = []
    for prefix in (True, False):
        model, seen = stacked(name, prefix), []
        with observe(seen.append):
            logits(model, **batch)
        first.append(seen[0])
    behind_it, alone = first
    assert torch.equal(behind_it.call.value, alone.call.value)
    assert torch.equal(behind_it.term, alone.term)
    assert alone.term.abs().max() > 0.01
    assert (behind_it.output - alone.output).abs().max() > 0.01
    assert torch.equal(behind_it.positions.columns, alone.positions.columns)
    assert torch.equal(behind_it.positions.rows, alone.positions.rows)


def split(prefix: Tensor, like: Tensor) -> Tensor:
    """(P, G·D) as (B, G, P, D)."""
    heads = prefix.detach().view(len(prefix), like.shape[1], like.shape[3]).transpose(0, 1)
    return heads.expand(len(like), -1, -1, -1)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_map_inside_the_softmax_leaves_the_prefix_columns_alone(name):
    """¬N behind a prefix, written out: the map joins the scores of tokens only."""
    model, batch, seen = stacked(name, ablation="no_negative"), batch_of(name), []
    maps = explain(model, batch)[0].map
    with observe(seen.append):
        logits(model, **batch)
    call = seen[0].call
    layer = call.module.prefix
    query, value = call.query, call.value
    keys = torch.cat([split(layer.lora_key["default"], call.key), call.key], 2)
    values = torch.cat([split(layer.lora_value["default"], value), value], 2)
    keys, values = (x.repeat_interleave(4 // x.shape[1], 1) for x in (keys, values))
    scores = query @ keys.transpose(-1, -2) * 8**-0.5
    for added in (maps, call.mask):
        scores = scores + nn.functional.pad(added, (LENGTH, 0))
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    real = batch["attention_mask"].bool()
    assert_close((seen[0].output + seen[0].term)[real], expected[real])


# DeBERTa-v2, whose attention computes its scores itself.


def deberta(*others) -> PeftModel:
    """A tiny DeBERTa-v2 with a large prefix, the same for the same arguments."""
    base, prefix = ARCHITECTURES["deberta_v2"](), PrefixConfig(length=LENGTH)
    torch.manual_seed(1)
    return moved(base, LoradaConfig(parts=[prefix, *others]) if others else prefix)


def disentangled(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__.startswith("Disentangled")]


def by_hand(module: nn.Module, x, mask, relative_pos, relative) -> torch.Tensor:
    """softmax([q_i · P_k, s_ij] ) [P_v; V], s_ij of the DeBERTa paper's Eq. 4, pair by pair."""
    heads, width = module.num_attention_heads, module.attention_head_size
    scale = torch.tensor(3.0 * width).sqrt()  # in fp32, as the model takes it

    def split(states):
        return states.unflatten(-1, (heads, width)).transpose(-2, -3)

    q, k, v = (split(p(x)) for p in (module.query_proj, module.key_proj, module.value_proj))
    positions_q, positions_k = split(module.query_proj(relative)), split(module.key_proj(relative))
    prefix_k, prefix_v = (split(p) for p in module.prefix.prefix("default"))
    output, tokens, last = torch.zeros_like(v), x.shape[1], 2 * module.pos_ebd_size - 1
    for b in range(len(x)):
        for h in range(heads):
            for i in range(tokens):
                scores = [q[b, h, i] @ key / scale for key in prefix_k[h]]
                values = list(prefix_v[h])
                for j in range(tokens):
                    if not mask[b, 0, i, j]:
                        continue
                    d = min(max(int(relative_pos[0, i, j]) + module.pos_ebd_size, 0), last)
                    s = q[b, h, i] @ k[b, h, j] + q[b, h, i] @ positions_k[h, d]
                    scores.append((s + k[b, h, j] @ positions_q[h, d]) / scale)
                    values.append(v[b, h, j])
                output[b, h, i] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return output.transpose(1, 2).flatten(2)


def first_attention(model: nn.Module, batch: dict) -> tuple[nn.Module, dict, torch.Tensor]:
    """The first attention of a model, what it is given for a batch, and its output."""
    module, seen = disentangled(model)[0], []

    def keep(_, args, kwargs, output):
        given = signature(type(module).forward).bind(module, *args, **kwargs)
        seen.append((module, given.arguments, output[0]))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    model(**batch)
    handle.remove()
    return seen[0]


def test_attention_is_its_formula_in_values_and_gradients():
    module, given, output = first_attention(deberta(), batch_of("deberta_v2"))
    names = "hidden_states", "attention_mask", "relative_pos", "rel_embeddings"
    expected = by_hand(module, *(given[name] for name in names))
    parts = [module.prefix.lora_key["default"], module.prefix.lora_value["default"]]
    assert_same_gradients(output, expected, parts, more_than=0.01)


def test_without_an_active_prefix_the_module_is_what_it_was():
    model, batch = deberta(), batch_of("deberta_v2")
    plain = logits(ARCHITECTURES["deberta_v2"](), **batch)
    changed = logits(model, **batch)
    assert not torch.allclose(changed, plain, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model, **batch), plain)
    base = model.unload()
    assert all("forward" not in module.__dict__ for module in disentangled(base))
    assert torch.equal(logits(base, **batch), plain)


def test_a_map_beside_the_prefix_adds_the_same_term_as_alone():
    batch = batch_of("deberta_v2")
    both, prefix = deberta(lmam()), deberta()
    alone = get_peft_model(ARCHITECTURES["deberta_v2"](), lmam()).eval()
    for other in (prefix, alone):
        other.load_state_dict(both.state_dict(), strict=False)

    with alone.disable_adapter():
        plain = first_attention(alone, batch)[2]
    term = first_attention(alone, batch)[2] - plain
    assert term.abs().max() > 1e-2
    assert_close(first_attention(both, batch)[2] - first_attention(prefix, batch)[2], term)
