"""QuantaConfig as an adapter: what is saved, merged, disabled, stacked and mixed."""

import json
import warnings

import pytest
import torch
from accelerate import cpu_offload
from architectures import ARCHITECTURES, inputs
from conftest import TINY, assert_close
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from stacks import batch, bottleneck, lmam, logits, lora, randomise
from test_quanta import both, layers, quanta

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

BASE = "__base__"
SEEDS = pytest.mark.parametrize("seed", [None, 7], ids=["saved start", "seed"])


def moved(name: str = "llama", **options) -> PeftModel:
    """A tiny model whose gates have moved away from their start, in eval mode."""
    model = get_peft_model(ARCHITECTURES[name](), quanta(**options)).eval()
    randomise(model)
    return model


def gates_file(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


# Saving and loading.


@SEEDS
@pytest.mark.parametrize("name", ["llama", "roberta", "bart", "mbart", "deberta_v2", "gpt2"])
def test_saved_adapter_gives_the_same_logits(name, seed, tmp_path):
    model, batch_ = moved(name, seed=seed), inputs(name)
    expected = logits(model, batch_)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)  # another state of torch's generator than when the gates were drawn
    for low in (False, True):
        fresh = ARCHITECTURES[name]()
        loaded = PeftModel.from_pretrained(fresh, tmp_path, low_cpu_mem_usage=low)
        assert_close(logits(loaded, batch_), expected)


def test_a_seed_halves_the_file_and_gives_each_module_gates_of_its_own(tmp_path):
    sizes = {}
    for seed in (None, 7):
        moved(seed=seed).save_pretrained(tmp_path / str(seed))
        sizes[seed] = sum(value.numel() for value in gates_file(tmp_path / str(seed)).values())
    assert sizes[None] == 2 * sizes[7] == 2 * 4 * 240
    assert json.loads((tmp_path / "7" / "adapter_config.json").read_text())["seed"] == 7

    one, again, other = (get_peft_model(TINY["llama"](), quanta(seed=s)) for s in (7, 7, 8))
    starts = [[both(layer)[1][0] for layer in layers(model)] for model in (one, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(*starts[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))
    assert len({start.sum().item() for start in starts[0]}) == 4


def test_training_goes_on_after_loading_from_where_it_was(tmp_path):
    model = moved()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path, is_trainable=True)
    for layer, again in zip(layers(model), layers(loaded), strict=True):
        for kept, got in zip(both(layer), both(again), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(kept, got, strict=True))
    trained = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}


def test_file_without_its_start_is_refused_in_one_line(tmp_path):
    moved().save_pretrained(tmp_path)
    tensors = {k: v for k, v in gates_file(tmp_path).items() if "start_" not in k}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"lora_gates.*but not its start") as error:
        PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    assert "\n" not in str(error.value)


def test_adapter_of_another_width_is_refused_in_one_line(tmp_path):
    moved(dims="4-2-4").save_pretrained(tmp_path)
    wider = ARCHITECTURES["llama"](hidden_size=64)
    with pytest.raises(ValueError, match=r"dims=4-2-4 multiply to 32, but .* has 64") as error:
        PeftModel.from_pretrained(wider, tmp_path)
    assert "\n" not in str(error.value)
    moved().save_pretrained(tmp_path / "default")
    with pytest.raises(ValueError, match="saved for another model size") as error:
        PeftModel.from_pretrained(wider, tmp_path / "default")
    assert "\n" not in str(error.value)


@SEEDS
def test_names_in_the_file_are_plain_and_without_the_adapter_s(seed):
    keys = get_peft_model_state_dict(moved(seed=seed)).keys()
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_gates"
    own = {key.removeprefix(f"{place}.") for key in keys if key.startswith(place)}
    gates = {"4_3", "4_2", "4_1", "3_2", "3_1", "2_1"}
    assert own == (gates if seed else gates | {f"start_{gate}" for gate in gates})


# Merging, disabling, several adapters.


@pytest.mark.parametrize("name", ["llama", "roberta", "bart", "deberta_v2", "gpt2"])
def test_merged_weights_compute_what_the_gates_did(name):
    model, batch_ = moved(name), inputs(name)
    expected, plain = logits(model, batch_), logits(ARCHITECTURES[name](), batch_)
    weights = [layer.get_base_layer().weight.clone() for layer in layers(model)]

    model.merge_adapter(safe_merge=True)
    assert_close(logits(model, batch_), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.unmerge_adapter()
    for layer, weight in zip(layers(model), weights, strict=True):
        assert_close(layer.get_base_layer().weight, weight)
    assert_close(logits(model, batch_), expected)

    model.merge_adapter()
    with model.disable_adapter():
        assert_close(logits(model, batch_), plain)
    merged = model.merge_and_unload()
    assert not layers(merged)
    assert_close(logits(merged, batch_), expected)


def test_matrices_that_are_not_square_merge():
    targets = ["v_proj", "up_proj", "down_proj"]
    model, batch_ = moved(target_modules=targets), batch("llama")
    expected = logits(model, batch_)
    assert_close(logits(model.merge_and_unload(), batch_), expected)


def test_merge_at_the_start_changes_no_weight():
    model = get_peft_model(TINY["llama"](), quanta())
    merged, fresh = model.merge_and_unload().state_dict(), TINY["llama"]().state_dict()
    assert all(torch.equal(merged[key], fresh[key]) for key in fresh)


def test_safe_merge_refuses_what_is_not_finite_and_leaves_the_weight():
    model = moved()
    layer = layers(model)[0]
    weight = layer.get_base_layer().weight.clone()
    both(layer)[0][0].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, weight)
    assert not layer.merged


def two_adapters() -> PeftModel:
    model = moved()
    model.add_adapter("second", quanta(dims="8-4", target_modules=["q_proj", "down_proj"]))
    randomise(model, "second")
    return model.eval()


def test_adapters_are_switched_summed_disabled_and_deleted():
    batch_, model = batch("llama"), two_adapters()
    plain = logits(TINY["llama"](), batch_)
    found = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        found[name] = logits(model, batch_)
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert trained
        assert all(f".lora_gates.{name}." in n for n in trained)
        assert (found[name] - plain).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model, batch_), plain)

    model.base_model.set_adapter(["default", "second"])
    together = logits(model, batch_)
    model.merge_adapter()
    assert_close(logits(model, batch_), together)
    model.unmerge_adapter()

    model.set_adapter("default")
    model.delete_adapter("second")
    assert_close(logits(model, batch_), found["default"])
    assert not any("second" in key for key in model.state_dict())
    assert_close(logits(model.unload(), batch_), plain)


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in stacks"])
def test_each_sample_of_a_mixed_batch_gets_its_own_gates(stacked):
    if stacked:
        model = get_peft_model(TINY["llama"](), LoradaConfig(parts=[lmam(), quanta()]))
        model.add_adapter("second", LoradaConfig(parts=[quanta(dims="8-4"), lora("llama")]))
        model.add_adapter("third", LoradaConfig(parts=[lora("llama"), lmam()]))
    else:
        model = two_adapters()
        model.add_adapter("third", quanta(seed=1))
    for name in ("default", "second", "third"):
        randomise(model, name)
    model.eval()
    batch_ = {"input_ids": torch.randint(5, 90, (4, 8))}
    order = ["second", BASE, "default", "third"]
    mixed = logits(model, batch_, adapter_names=order)
    for i, name in enumerate(order):
        if name == BASE:
            expected = logits(TINY["llama"](), batch_)
        else:
            model.set_adapter(name)
            expected = logits(model, batch_)
        assert_close(mixed[i], expected[i])
    beams = {"num_beams": 2, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    written = model.generate(**batch_, **beams, adapter_names=order)
    for i, name in enumerate(order[2:], 2):
        model.set_adapter(name)
        row = batch_["input_ids"][i : i + 1]
        assert torch.equal(model.generate(input_ids=row, **beams)[0], written[i])


def test_mixed_batch_needs_unmerged_adapters():
    model = two_adapters()
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match=r"unmerge_adapter\(\)"):
        logits(model, {"input_ids": torch.ones(1, 4, dtype=int)}, adapter_names=["second"])


# In a stack.

STACKS = {
    "beside": lambda: [lmam(), quanta(), lora("llama", 2, 3), bottleneck()],
    "around LoRA": lambda: [lora("llama", 0, 1), quanta(), lmam()],
    "around DoRA": lambda: [lmam(), lora("llama", 0, 1, use_dora=True), quanta(), bottleneck()],
    "inside LoRA": lambda: [quanta(), lora("llama", 0, 1), lmam()],
}


@SEEDS
@pytest.mark.parametrize("stack", STACKS)
def test_stack_with_map_and_lora_saves_loads_and_merges(stack, seed, tmp_path):
    parts = STACKS[stack]()
    next(part for part in parts if part.peft_type == "QUANTA").seed = seed
    batch_, base = batch("llama"), TINY["llama"]()
    plain = logits(base, batch_)
    model = get_peft_model(base, LoradaConfig(parts=parts)).eval()
    assert (logits(model, batch_) - plain).abs().max() < 1e-5
    randomise(model)
    expected = logits(model, batch_)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    assert_close(logits(loaded, batch_), expected)

    rest = model.base_model.merge_weights()
    assert not layers(rest)
    assert_close(logits(rest, batch_), expected)


def test_second_stack_finds_the_gates_of_the_first(tmp_path):
    batch_ = batch("llama")
    model = get_peft_model(TINY["llama"](), LoradaConfig(parts=[quanta(), lora("llama", 0)]))
    model.add_adapter("second", LoradaConfig(parts=[quanta(seed=3), lmam()]))
    randomise(model, "second")
    model.set_adapter("second")
    expected = logits(model.eval(), batch_)
    assert len(layers(model)) == 4
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "second")
    assert_close(logits(loaded, batch_), expected)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])
def test_without_autocast_the_gates_take_the_base_s_dtype(stacked):
    config = LoradaConfig(parts=[quanta(), lora("llama", 2)]) if stacked else quanta()
    base, batch_ = TINY["llama"]().bfloat16(), batch("llama")
    expected = logits(base, batch_)
    model = get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    for layer in layers(model):
        assert {tensor.dtype for kind in both(layer) for tensor in kind} == {torch.bfloat16}
    assert torch.equal(logits(model, batch_), expected)


def test_plain_lora_goes_around_gates():
    model = moved()
    inner = model.base_model.model
    outer = get_peft_model(inner, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert len(layers(outer)) == 4
    assert torch.isfinite(logits(outer, batch("llama"))).all()


# Quantised bases.


@pytest.mark.fp64(False)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gates_train_reload_and_merge_on_a_quantised_base(kind, tmp_path):
    from folders import llama_folder
    from test_quantised import BATCH, base, losses  # skips where an extra is missing

    wide = {"hidden_size": 64, "intermediate_size": 128}
    folder = str(llama_folder(tmp_path / "m", initializer_range=0.2, attention_dropout=0.0, **wide))
    plain = logits(base(folder, kind).eval(), BATCH)
    assert torch.equal(logits(get_peft_model(base(folder, kind), quanta()).eval(), BATCH), plain)
    model = get_peft_model(base(folder, kind), quanta())
    found = losses(model)
    assert found[-1] < found[0] - 0.1
    # Saved before the first evaluation, as in the tests of other stacks on quantised bases.
    model.save_pretrained(tmp_path / "adapter")
    trained = logits(model.eval(), BATCH)
    loaded = PeftModel.from_pretrained(base(folder, kind), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded, BATCH), trained)

    # Two models, as an evaluation changes how bitsandbytes keeps the weights. Quantised anew, the
    # merged weight is near and no more.
    randomise(one := get_peft_model(base(folder, kind), quanta(seed=1)))
    two = get_peft_model(base(folder, kind), quanta(seed=1))
    set_peft_model_state_dict(two, get_peft_model_state_dict(one))
    expected, merged = logits(one.eval(), BATCH), logits(two.merge_and_unload().eval(), BATCH)
    assert (merged - expected).norm() < 0.5 * (expected - plain).norm()


def test_offloaded_weights_are_refused_in_one_line():
    model = cpu_offload(TINY["llama"](), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="offloaded, where PEFT leaves Quanta weights") as error:
        get_peft_model(model, quanta())
    assert "\n" not in str(error.value)
