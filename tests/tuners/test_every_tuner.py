"""What every tuner in ``TUNERS`` promises, alone and in a stack, on a decoder and an encoder."""

import copy
import json
import pickle
from dataclasses import fields

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, assert_all_close, assert_close, gradients
from folders import refused
from method_cases import SMALL
from peft import PeftModel, get_peft_model
from stacks import batch, lmam, logits, lora, moved, randomise, starts_as_base

import lorada
from lorada import LoradaConfig
from lorada.methods.sizes_and_rates import SIZES
from lorada.support.tuner_names import TUNERS
from lorada.tuners.base.tuner import LoradaTunerLayer
from lorada.tuners.lmam import bake

pytestmark = pytest.mark.fp64

# A part with several forms is tried in each of them.
FORMS = {"prefix_network": {"length": 3, "projection": 5}}
# The tuners that wrap linear layers.
WRAPPING = ("lamda", "omoe", "quanta", "sora")
every_tuner = pytest.mark.parametrize("part", [*TUNERS, *FORMS])
alone_and_stacked = pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])


def config_of(part, stacked=False, name="llama", **options):
    """A small config of a tuner, beside LoRA on matrices that it may be on and beside a map."""
    tuner = part.partition("_")[0]
    if tuner == "omoe" and name == "roberta":  # for which it has no default
        options["target_modules"] = ["intermediate.dense", "query"]
    settings = {**FORMS.get(part, SMALL.get(part, {})), **options}
    config = getattr(lorada, TUNERS[tuner])(**settings)
    if not stacked:
        return config
    beside = [lora(name), *([] if tuner == "lmam" else [lmam()])]
    return LoradaConfig(parts=[*beside[:1], config, *beside[1:]])


def adapted(part, stacked=False, name="llama"):
    return moved(TINY[name](), config_of(part, stacked, name))


@pytest.mark.first
@every_tuner
@pytest.mark.parametrize(
    ("name", "stacked"), [("llama", False), ("roberta", True)], ids=["alone", "in a stack"]
)
def test_a_saved_adapter_comes_back_under_its_name(part, stacked, name, tmp_path):
    model, inputs = adapted(part, stacked, name=name), batch(name)
    plain, changed = logits(TINY[name](), inputs), logits(model, inputs)
    assert (changed - plain).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == ("LORADA" if stacked else config_of(part).peft_type)
    assert saved.keys() == {field.name for field in fields(model.peft_config["default"])}
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(TINY[name](), str(tmp_path), **options).eval()
        assert_close(logits(loaded, inputs), changed)
    for copied in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        randomise(loaded)  # a copy reads its own weights
        assert_close(logits(copied, inputs), changed)


@pytest.mark.first
@every_tuner
@alone_and_stacked
def test_the_base_is_what_it_was_with_the_adapter_off_or_gone(part, stacked):
    model, inputs = adapted(part, stacked), batch("llama")
    plain = TINY["llama"]()
    expected, modules = logits(plain, inputs), state_of(plain)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    base = model.unload()
    assert torch.equal(logits(base, inputs), expected)
    assert state_of(base) == modules


def state_of(model):
    """The names of the modules, their hooks, and whether one has a forward of its own."""
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    ]


@pytest.mark.first
@every_tuner
@alone_and_stacked
def test_a_batch_in_which_samples_name_their_adapters_is_refused(part, stacked):
    model, inputs = adapted(part, stacked), batch("llama")
    named = {**inputs, "adapter_names": ["default"] * 3}
    for call in (model, model.generate):
        refused(r"^adapter_names: .* model.set_adapter", lambda call=call: call(**named))


@every_tuner
def test_adapters_are_switched_and_deleted(part):
    model, inputs = adapted(part), batch("llama")
    first = logits(model, inputs)
    model.add_adapter("other", config_of(part, layers_to_transform=[1]))
    randomise(model.eval(), "other")
    assert torch.equal(logits(model, inputs), first)
    model.set_adapter("other")
    bake(model)
    second = logits(model, inputs)
    assert (second - first).abs().max() > 1e-3
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained
    places = (".layers.1.", "prefix_self")  # a network stands outside the layers
    assert all(".other" in key and any(place in key for place in places) for key in trained)
    model.delete_adapter("default")
    assert torch.equal(logits(model, inputs), second)
    assert not any(".default" in key for key in model.state_dict())
    # Nor does it keep memory in a buffer that is not saved, or beside the weights.
    assert not any("default" in key.split(".") for key, _ in model.named_buffers())
    layers = [layer for layer in model.modules() if isinstance(layer, LoradaTunerLayer)]
    held = [value for layer in layers for value in vars(layer).values() if isinstance(value, dict)]
    assert not any("default" in by_name for by_name in held)


@every_tuner
def test_an_excluded_layer_is_left_alone(part):
    model = get_peft_model(TINY["llama"](), config_of(part, exclude_modules=r".*layers\.0\..*"))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert not any(".layers.0." in name for name in trained)


@pytest.mark.first
@every_tuner
@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_several_adapters_merge_to_their_sum_and_back_or_it_is_refused(part, name):
    model, inputs = adapted(part, name=name), batch(name)
    plain = logits(TINY[name](), inputs)
    if not model.peft_config["default"].mergeable:
        refused(r"^\w+ parts cannot be merged into the weights[:,] .*$", model.merge_adapter)
        return
    model.add_adapter("other", config_of(part, name=name))
    randomise(model.eval(), "other")
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model, inputs)
    model.merge_adapter(safe_merge=True)
    assert_close(logits(model, inputs), expected)
    with model.disable_adapter():  # unmerges
        assert_close(logits(model, inputs), plain)
    assert_close(logits(model, inputs), expected)
    assert_close(logits(copy.deepcopy(model).unload(), inputs), plain)
    merged = copy.deepcopy(model).merge_and_unload()
    assert_close(logits(merged, inputs), expected)
    assert merged.state_dict().keys() == TINY[name]().state_dict().keys()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    refused("NaNs detected in the merged weights", lambda: model.merge_adapter(safe_merge=True))


@pytest.mark.parametrize("part", WRAPPING)
def test_the_transposed_matrices_of_gpt2_are_adapted_and_merged(part):
    options = {"omoe": {"target_modules": ["c_fc"]}, "lamda": {"ranks": "energy"}}.get(part, {})
    base, inputs = ARCHITECTURES["gpt2"](), batch("llama")
    model = get_peft_model(base, config_of(part, **options)).eval()
    plain = logits(ARCHITECTURES["gpt2"](), inputs)
    assert_close(logits(model, inputs), plain)
    randomise(model)
    expected = logits(model, inputs)
    assert (expected - plain).abs().max() > 0.1
    if model.peft_config["default"].mergeable:
        merged = model.merge_and_unload()
        assert_close(logits(merged, inputs), expected)
        assert all(parameter.is_contiguous() for parameter in merged.parameters())


@every_tuner
def test_gradient_checkpointing_changes_no_gradient(part):
    model, inputs, found = adapted(part), batch("llama"), []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train().zero_grad()
        torch.manual_seed(1)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        found.append(gradients(model))
    for checkpointed in found[1:]:
        assert_all_close(checkpointed, found[0])


@pytest.mark.fp64(False)
@every_tuner
@alone_and_stacked
@pytest.mark.parametrize("autocast", [True, False])
def test_weights_are_in_float32_or_where_that_is_asked_in_the_dtype_of_the_base(
    part, stacked, autocast
):
    base = TINY["llama"]().to(torch.bfloat16)
    model = get_peft_model(base, config_of(part, stacked), autocast_adapter_dtype=autocast)
    dtypes = {weight.dtype for name, weight in model.state_dict().items() if ".lora_" in name}
    assert dtypes == {torch.float32 if autocast else torch.bfloat16}
    inputs = batch("llama")
    found = logits(model.eval(), inputs)
    assert torch.isfinite(found).all()
    if autocast and starts_as_base(model.peft_config["default"]):
        with model.disable_adapter():
            assert torch.equal(logits(model, inputs), found)


SCALES = ("alpha", "lora_alpha", "scale")
# Tuners with a setting that scales what they add.
SCALED = [
    part for part, config in TUNERS.items()
    if set(SCALES) & {field.name for field in fields(getattr(lorada, config))}
]  # fmt: skip


def placed(part, **options):
    """A model with a tuner at its start."""
    return get_peft_model(TINY["llama"](), config_of(part, **options)).eval()


@pytest.mark.parametrize("part", SCALED)
def test_a_setting_that_scales_what_a_tuner_adds_does_so(part):
    (scale,) = set(SCALES) & set(config_of(part).__dataclass_fields__)
    value = getattr(config_of(part), scale)
    once, twice = placed(part, **{scale: value}), placed(part, **{scale: 2 * value})
    randomise(once)
    twice.load_state_dict(once.state_dict())
    inputs = batch("llama")
    assert (logits(once, inputs) - logits(twice, inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("part", [part for part in SCALED if len(SIZES[part]) > 1])
def test_a_size_that_grows_with_its_scale_changes_nothing_by_itself(part):
    """With both doubled and zeros in what is new, a tuner adds the same: it divides by its size."""
    size, scale = SIZES[part]
    small = {key: value for key, value in SMALL[part].items() if key == size}
    settings = {size: small[size], scale: 3.0}
    narrow = placed(part, **settings)
    wide = placed(part, **{key: 2 * value for key, value in settings.items()})
    randomise(narrow)
    weights = narrow.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            corner = tuple(map(slice, weights[name].shape))
            weight.zero_()[corner] = weights[name]
    inputs = batch("llama")
    assert_close(logits(wide, inputs), logits(narrow, inputs))
