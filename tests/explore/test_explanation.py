"""``lorada.explain``: each number is what one gets by hand, for maps and for other methods."""

import pytest
import torch
from architectures import ARCHITECTURES
from architectures import inputs as batch_of
from conftest import TINY, assert_close
from folders import refused
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertForSequenceClassification, GptOssConfig, GptOssForCausalLM

from lorada import BottleneckConfig, LmamConfig, LoradaConfig, PrefixConfig, explain
from lorada.explore.explanation import ATTENDED
from lorada.tuners.pooling import PoolingConfig, PoolingLayer

pytestmark = pytest.mark.fp64

IDS = torch.arange(3, 13)[None]
MAP = {"length": 6, "init_weights": False}
PROJECTIONS = {"llama": ["q_proj", "o_proj"], "bert": ["query", "dense"]}


def lora(name="llama"):
    return LoraConfig(r=2, target_modules=PROJECTIONS[name], init_lora_weights=False)


def stack(name="llama", *parts):
    parts = list(parts) or [LmamConfig(**MAP), lora(name)]
    model = TINY[name](attn_implementation="eager")
    return get_peft_model(model, LoradaConfig(parts=parts)).eval()


def read(model, **options):
    with torch.no_grad():
        return model(IDS, output_hidden_states=True, output_attentions=True, **options)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_softmax_is_the_models_own_with_the_adapter_and_without(name):
    model = stack(name)
    found = explain(model, {"input_ids": IDS})
    with model.disable_adapter():
        off = read(model)
    for layer, softmax in zip(found, off.attentions, strict=True):
        assert_close(layer.without, softmax)
    # With a map, eager attention returns the softmax alone.
    for layer, softmax in zip(found, read(model).attentions, strict=True):
        assert_close(layer.softmax, softmax)
        assert_close(layer.fused, layer.softmax + layer.map)
    assert not torch.allclose(found[1].softmax, found[1].without)


def own_softmax(model, inputs):
    """The softmax maps that are shown, whatever kernel it has, and those that the model returns."""
    kernel = model.config._attn_implementation
    found = explain(model, inputs)
    assert model.config._attn_implementation == kernel
    model.get_base_model().set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    own = out.get("attentions") or [*out.encoder_attentions, *out.decoder_attentions]
    return zip([layer.softmax for layer in found], own, strict=True)


# Scores that are capped, a sliding window, a bias by distance, cross-attention beside it.
@pytest.mark.parametrize(
    ("name", "projections"),
    [("gemma2", ["q_proj"]), ("gemma3", ["q_proj"]), ("t5", ["q", "v"]), ("bart", ["q_proj"])],
)
def test_the_softmax_of_other_families_is_their_own(name, projections):
    part = LoraConfig(r=2, target_modules=projections, init_lora_weights=False)
    inputs = batch_of(name)
    for shown, softmax in own_softmax(get_peft_model(ARCHITECTURES[name](), part).eval(), inputs):
        assert_close(shown, softmax)


@pytest.mark.fp64(False)  # its experts know no fp64
def test_the_softmax_beside_sinks_is_the_models_own():
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2,
        num_experts_per_tok=1, initializer_range=0.8, sliding_window=4,
    )  # fmt: skip
    part = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(GptOssForCausalLM(config), part).eval()
    for shown, softmax in own_softmax(model, {"input_ids": IDS}):
        assert_close(shown, softmax, terms=32, size=1.0)
        assert softmax.sum(-1).min() < 0.99  # a part of each row belongs to no token


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_moved_is_how_far_each_heads_output_is_from_the_one_without(name):
    model = stack(name)
    outputs = []
    module = dict(model.named_modules())[explain(model, {"input_ids": IDS})[0].layer]
    after = module.o_proj if name == "llama" else model.base_model.model.bert.encoder.layer[0]
    after = after if name == "llama" else after.attention.output.dense
    after.register_forward_pre_hook(lambda m, args: outputs.append(args[0].view(10, 4, 8)))
    found = explain(model, {"input_ids": IDS})[0]
    on, off = outputs[:2]
    expected = (on - off).norm(dim=(0, 2)) / off.norm(dim=(0, 2))
    assert_close(found.moved, expected)
    assert (found.moved > 0).all()


def test_the_relative_norm_is_the_ratio_of_the_two_terms():
    model = stack("llama", LmamConfig(**MAP))
    captured = {}
    attention = model.base_model.model.model.layers[0].self_attn
    attention.v_proj.register_forward_hook(lambda m, a, out: captured.update(value=out))
    seen = explain(model, {"input_ids": IDS})[0]
    value = captured["value"].view(1, 10, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    on, off = ((part @ value).square().sum((0, 2, 3)).sqrt() for part in (seen.map, seen.softmax))
    assert_close(seen.effect, on / off)
    assert seen.relative_norm == pytest.approx(float(on.norm() / off.norm()), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_negative_ratio_counts_visible_pairs_within_the_map(name):
    first = explain(stack(name, LmamConfig(**MAP)), {"input_ids": IDS})[0]
    pairs = torch.ones(6, 6, dtype=torch.bool)
    pairs = pairs.tril() if name == "llama" else pairs
    for ratio, values in ((first.negative, first.fused), (first.map_negative, first.map)):
        inside = values[0, :, :6, :6]
        assert_close(ratio, torch.stack([(head[pairs] < 0).double().mean() for head in inside]))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_no_negative_map_sits_inside_the_softmax_and_has_an_relative_norm(name):
    model = stack(name, LmamConfig(ablation="no_negative", **MAP))
    seen = explain(model, {"input_ids": IDS})[0]
    assert seen.inside
    assert_close(seen.fused, read(model).attentions[0])
    assert_close(seen.softmax, seen.without)  # the first layer reads the same
    assert seen.relative_norm > 1e-3
    assert (seen.fused >= 0).all()
    assert (seen.negative == 0).all()


def plain(key):
    """A parameter's name without what PEFT puts in it."""
    return key.replace("base_model.model.", "").replace(".base_layer", "")


def test_each_part_alone_is_a_model_with_that_part_alone():
    model = stack("llama", LmamConfig(**MAP), lora(), BottleneckConfig(rank=2, init_weights=False))
    found = explain(model, {"input_ids": IDS})
    assert found.parts == ["LoRA", "map", "bottleneck"]
    with model.disable_adapter():
        off = read(model)
    weights = {plain(key): value for key, value in model.state_dict().items()}
    parts = {
        "map": LmamConfig(**MAP), "LoRA": lora(),
        "bottleneck": BottleneckConfig(rank=2, init_weights=False),
    }  # fmt: skip
    for name, part in parts.items():
        alone = stack("llama", part)
        with torch.no_grad():
            for key, parameter in alone.named_parameters():
                parameter.copy_(weights[plain(key)])
        on = read(alone)
        assert_close(found.probabilities[name], on.logits[:, -1].softmax(-1))
        for change, here, there in zip(
            found.change[name], on.hidden_states[1:], off.hidden_states[1:], strict=True
        ):
            assert_close(change, (here - there).norm() / there.norm())
    assert_close(found.probabilities["with"], read(model).logits[:, -1].softmax(-1))
    assert_close(found.probabilities["without"], off.logits[:, -1].softmax(-1))
    assert set(found.change) == {"all", *parts}


MORE = {"nothing": [], "map": [LmamConfig(**MAP)], "pooling": [PoolingConfig(pooling="mean")]}


@pytest.mark.parametrize("beside", MORE)
def test_a_trained_head_is_counted_for_itself_and_a_pooling_with_it(beside):
    base = BertForSequenceClassification(TINY["bert"](attn_implementation="eager").config)
    parts = {"parts": [lora("bert"), *MORE[beside]], "modules_to_save": ["classifier"]}
    model = get_peft_model(base, LoradaConfig(**parts, task_type="SEQ_CLS")).eval()
    head = base.classifier.modules_to_save["default"]
    torch.nn.init.normal_(head.weight)  # other weights than those that it replaces
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    found = explain(model, inputs)
    assert found.head == "head"
    assert found.parts == ["LoRA", "map"][: 1 + (beside == "map")]
    assert found.change["head"].max() == 0

    def shares():
        with torch.no_grad():
            return model(**inputs).logits.softmax(-1)

    assert_close(found.probabilities["with"], shares())
    with model.disable_adapter():
        assert_close(found.probabilities["without"], shares())
    for layer in model.modules():  # what the head says alone, by the model itself
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, PoolingLayer):
            layer.enable_adapters(False)
    assert_close(found.probabilities["head"], shares())
    assert not torch.allclose(shares(), found.probabilities["without"], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_what_is_attended_to_is_counted(name):
    found = explain(stack(name), {"input_ids": IDS})[0]
    shares = dict(zip(ATTENDED, found.attends, strict=True))
    assert_close(sum(shares.values()), torch.ones(4))
    assert_close(shares["itself"], found.softmax[0].diagonal(dim1=1, dim2=2).mean(-1))
    previous = found.softmax[0].diagonal(-1, dim1=1, dim2=2).sum(-1) / 10
    assert_close(shares["previous"], previous)
    first = found.softmax[0, :, 2:, 0].sum(-1) / 10
    assert_close(shares["first"], first)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_changes_nothing(name):
    model = stack(name)
    alone = explain(model, {"input_ids": IDS})
    pads = torch.zeros(1, 5, dtype=torch.long)
    pieces = ([pads, IDS], [pads, torch.ones_like(IDS)])
    if name == "bert":  # its positions count pads on the left
        pieces = ([IDS, pads], [torch.ones_like(IDS), pads])
    ids, mask = (torch.cat(both, 1) for both in pieces)
    padded = explain(model, {"input_ids": ids, "attention_mask": mask})
    assert padded.real.sum() == 10
    for one, other in zip(alone, padded, strict=True):
        for axis in ("moved", "effect", "attends", "negative"):
            assert_close(getattr(other, axis), getattr(one, axis))
    for part in alone.change:
        assert_close(padded.change[part], alone.change[part])
    if name == "llama":
        for part, expected in alone.probabilities.items():
            assert_close(padded.probabilities[part], expected)


@pytest.mark.parametrize("ablation", [None, "no_negative"])
def test_rows_packed_into_one_are_shown_as_each_is_alone_and_no_map_between_them(ablation):
    model = stack("llama", LmamConfig(ablation=ablation, **MAP))
    rows = IDS.split([4, 6], 1)
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    packed = explain(model, {"input_ids": IDS, "position_ids": positions, "use_cache": False})
    alone = [explain(model, {"input_ids": row}) for row in rows]
    for layer, *own in zip(packed, *alone, strict=True):
        for kind in ("softmax", "map", "fused"):
            shown = getattr(layer, kind)[0]
            blocks = [getattr(part, kind)[0] for part in own]
            expected = torch.stack(
                [torch.block_diag(*heads) for heads in zip(*blocks, strict=True)]
            )
            assert_close(shown, expected)


@pytest.mark.parametrize(
    "config",
    [lora(), BottleneckConfig(rank=2, init_weights=False), PrefixConfig(length=3)],
    ids=["lora", "bottleneck", "prefix"],
)
def test_a_method_without_a_map_has_numbers_too(config):
    model = get_peft_model(TINY["llama"](attn_implementation="eager"), config).eval()
    found = explain(model, {"input_ids": IDS})
    assert len(found.parts) == 1
    assert len(found) == 2
    assert found[0].map is found[0].effect is found[0].negative is None
    assert found[1].moved.max() > 1e-4
    assert found.change["all"].max() > 1e-4
    assert_close(found.change[found.parts[0]], found.change["all"])
    assert not torch.allclose(found.probabilities["with"], found.probabilities["without"])


@pytest.mark.parametrize("plain", [True, False], ids=["of transformers", "of peft"])
def test_the_model_and_what_trains_are_as_before(plain):
    model = stack()
    next(p for p in model.parameters() if p.requires_grad).requires_grad = False
    trains, before = [p.requires_grad for p in model.parameters()], read(model).logits
    model.train()
    explain(model.base_model.model if plain else model, {"input_ids": IDS})
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == trains
    model.requires_grad_(False)
    explain(model, {"input_ids": IDS})
    assert not any(p.requires_grad for p in model.parameters())
    model.eval()
    assert_close(read(model).logits, before)
    with model.disable_adapter():
        assert not torch.allclose(read(model).logits, before)


def test_what_cannot_be_explained_is_said():
    def without_adapter(model):
        return refused("no active adapter: load or enable", lambda: explain(model, inputs))

    inputs, model = {"input_ids": IDS}, stack()
    without_adapter(TINY["llama"]())
    with model.disable_adapter():
        without_adapter(model)
    model.add_adapter("other", LoradaConfig(parts=[LmamConfig(**MAP)]))
    model.base_model.set_adapter(["default", "other"])
    refused("default, other all have a map: activate one", lambda: explain(model, inputs))
