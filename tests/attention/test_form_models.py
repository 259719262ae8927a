"""The maps by distance and content inside whole models: kernels, hooks, precision, training."""

import copy
import pickle

import pytest
import torch
from architectures import ARCHITECTURES, inputs
from conftest import DECODERS, ENCODERS, TINY, assert_close
from peft import PeftModel, get_peft_model
from stacks import batch, logits, randomise
from test_attention_models import SAMPLES, alone, in_batch, map_gradients
from test_prefix_kernels import flash_kernels  # noqa: F401  # a fixture
from torch import Tensor
from transformers import DynamicCache

from lorada import LmamConfig
from lorada.attention.content_map import BilinearMap
from lorada.attention.hooks import HookPair
from lorada.attention.layer_maps import layer_maps
from lorada.attention.observation import observe
from lorada.functional.content import bilinear_term_reference
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

FORMS = {
    "distance": {"form": "distance", "taps": 5},
    "content": {"form": "content", "heads": 2},
    "bilinear": {"form": "bilinear", "rank": 2},
}
every_form = pytest.mark.parametrize("form", FORMS)


def adapted(name: str, form: str, implementation: str = "sdpa", **options) -> PeftModel:
    """A tiny model with a random map; the same weights and map for the same arguments."""
    base = TINY[name](attn_implementation=implementation)
    options = {"inverse_scale": 2.0, "init_weights": False, **FORMS[form], **options}
    return get_peft_model(base, LmamConfig(**options)).eval()


@every_form
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_map_changes_the_logits_of_every_token_however_long_the_sequence_is(name, form):
    model, sample = adapted(name, form), torch.arange(50) * 7 % 83 + 5
    with_map = alone(model, sample)
    with model.disable_adapter():
        without = alone(model, sample)
    assert ((with_map - without).abs().amax(-1) > 0.02).all()


@every_form
@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sdpa_equals_eager(name, form, side):
    outputs = [in_batch(adapted(name, form, kernel), side) for kernel in ("sdpa", "eager")]
    for sdpa, eager in zip(*outputs, strict=True):
        assert_close(sdpa, eager)


def under_flash(model: PeftModel) -> PeftModel:
    """The same model, whose attention calls flash kernels."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation_internal"):
            module.config._attn_implementation_internal = "flash_attention_2"
    return other


@every_form
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_flash_kernels_give_what_sdpa_gives(name, padding, form, flash_kernels):  # noqa: F811
    sdpa = adapted(name, form)
    given = batch(name)
    if padding is None:
        del given["attention_mask"]
    elif padding == "left":
        given = {key: value.flip(1) for key, value in given.items()}
    real = given.get("attention_mask", torch.ones(3, 8)).bool()
    expected = logits(sdpa, given)
    assert_close(logits(under_flash(sdpa), given)[real], expected[real])


@every_form
def test_flash_kernels_give_what_sdpa_gives_in_chunks_and_steps(form, flash_kernels):  # noqa: F811
    sdpa = adapted("llama", form)
    tokens = torch.randint(5, 90, (2, 9))
    other, expected = under_flash(sdpa), logits(sdpa, {"input_ids": tokens})
    cache, found = DynamicCache(config=other.config), []
    for chunk in tokens.split([4, 3, 1, 1], 1):
        found.append(logits(other, {"input_ids": chunk}, past_key_values=cache, use_cache=True))
    assert_close(torch.cat(found, 1), expected)


@every_form
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_gradient_checkpointing_gives_the_same_gradients(name, form):
    model = adapted(name, form).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        module.dropout_prob = 0.0  # of BERT's attention
    expected = map_gradients(model, "left")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    found = map_gradients(model, "left")
    assert expected
    for key, gradient in expected.items():
        assert gradient.any()
        assert_close(found[key], gradient)


@pytest.mark.fp64(False)
@every_form
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_a_map_stays_in_fp32_on_a_half_precision_base(name, form):
    options = {"inverse_scale": 2.0, "init_weights": False, **FORMS[form]}
    model = get_peft_model(TINY[name]().to(torch.bfloat16), LmamConfig(**options))
    terms = []
    with observe(lambda one: terms.append(one.term)):
        plain = model(SAMPLES[1][None]).logits
        given = batch(name)
        found = model(**given).logits
    assert plain.dtype == found.dtype == torch.bfloat16
    assert found[given["attention_mask"].bool()].isfinite().all()
    assert [term.dtype for term in terms] == [torch.float32] * 4  # two calls of two layers
    found.float().sum().backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()


@every_form
def test_a_new_map_is_zero_and_learns(form):
    model = get_peft_model(TINY["llama"](), LmamConfig(**FORMS[form])).eval()
    with_map = alone(model, SAMPLES[1])
    with model.disable_adapter():
        assert_close(with_map, alone(model, SAMPLES[1]))
    gradients = map_gradients(model, "left")
    # The factor of the queries has none as long as that of the keys is zero.
    moved = [key for key, gradient in gradients.items() if gradient.any()]
    assert len(moved) == len([key for key in gradients if "lora_query_factor" not in key])


@every_form
def test_baking_leaves_a_map_that_depends_on_the_batch_as_it_is(form):
    model = adapted("llama", form)
    expected = alone(model, SAMPLES[1])
    model.base_model.bake()
    assert_close(alone(model, SAMPLES[1]), expected)


@every_form
def test_explain_shows_the_map_that_is_multiplied_with_the_values(form):
    model, seen = adapted("llama", form), []
    given = batch("llama")
    with observe(seen.append):
        layers = layer_maps(model, given)
    real = given["attention_mask"].bool()
    for layer, one in zip(layers, seen, strict=True):
        values = one.call.value.repeat_interleave(2, 1)
        assert_close((layer.map @ values).transpose(1, 2)[real], one.term[real])
        assert_close((layer.fused @ values).transpose(1, 2)[real], (one.output + one.term)[real])
        assert layer.effect_size > 0
        assert (layer.map_negative_ratio > 0).any()


# Models that compute attention themselves.


@pytest.mark.parametrize("name", ["deberta", "deberta_v2"])
def test_the_queries_and_keys_of_deberta_are_those_of_its_projections(name):
    model = get_peft_model(ARCHITECTURES[name](), LmamConfig(form="bilinear", init_weights=False))
    seen, hidden = [], []
    layer = next(m for m in model.modules() if isinstance(m, LmamLayer))
    host = layer.host
    host.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    with observe(seen.append), torch.no_grad():
        model.eval()(**inputs(name))
    call, own = seen[0].call, seen[0].attention_map
    assert isinstance(own, BilinearMap)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, -1)).transpose(1, 2)

    with torch.no_grad():
        if name == "deberta":
            query, key, value = heads(host.in_proj(hidden[0])).chunk(3, -1)
            query = query + heads(host.q_bias[None, None])
            value = value + heads(host.v_bias[None, None])
        else:
            projections = host.query_proj, host.key_proj, host.value_proj
            query, key, value = (heads(projection(hidden[0])) for projection in projections)
        visible = call.visible_keys().expand(-1, query.shape[2], -1)
        expected = bilinear_term_reference(*own.factors, query, key, value, visible)
    real = inputs(name)["attention_mask"].bool()
    found = seen[0].term[real]
    assert_close(found, expected.transpose(1, 2)[real])


@pytest.mark.parametrize("name", ["falcon", "falcon_alibi", "bloom"])
def test_a_model_that_does_not_hand_out_its_queries_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^form='bilinear' needs the queries, and \w+Attention "):
        get_peft_model(ARCHITECTURES[name](), LmamConfig(form="bilinear"))


@pytest.mark.parametrize("form", ["distance", "content"])
@pytest.mark.parametrize("name", ["falcon", "bloom"])
def test_decoding_behind_hooks_equals_the_full_forward(name, form):
    options = {"inverse_scale": 2.0, "init_weights": False, **FORMS[form]}
    model = get_peft_model(ARCHITECTURES[name](), LmamConfig(**options)).eval()
    tokens = torch.randint(5, 90, (2, 9))
    expected = logits(model, {"input_ids": tokens, "use_cache": False})
    cache, found = DynamicCache(config=model.config), []
    for chunk in tokens.split([4, 1, 1, 1, 1, 1], 1):
        found.append(logits(model, {"input_ids": chunk}, past_key_values=cache, use_cache=True))
    assert_close(torch.cat(found, 1), expected)


@every_form
@pytest.mark.parametrize("name", ["deberta", "deberta_v2", "bloom"])
def test_copies_and_pickles_of_a_model_with_hooks_have_a_map_of_their_own(name, form):
    if (name, form) == ("bloom", "bilinear"):
        pytest.skip("refused")
    model = get_peft_model(ARCHITECTURES[name](), LmamConfig(**FORMS[form])).eval()
    randomise(model)
    given = inputs(name)
    expected = logits(model, given)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, given), expected)
        randomise(other)
        assert not torch.allclose(logits(other, given), expected, atol=1e-3)
        assert torch.equal(logits(model, given), expected)
    pairs = [h for m in model.modules() if isinstance(m, LmamLayer) for h in m._handles
             if isinstance(h, HookPair)]  # fmt: skip
    assert len(pairs) == 2
    for pair in pairs:
        assert (pair._value, pair._key, pair._query, pair._mask) == (None,) * 4


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@every_form
def test_a_forward_compiles_to_one_graph(form):
    torch._dynamo.reset()
    model = adapted("llama", form)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for given in (batch("llama"), {"input_ids": torch.randint(5, 90, (2, 11))}):
            assert_close(compiled(**given).logits, model(**given).logits)
