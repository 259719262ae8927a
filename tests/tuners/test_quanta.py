"""QuantaConfig: (T - S) x against dense matrices, counts, the start, files."""

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, inputs, logits
from conftest import TINY, assert_close, assert_same_gradients
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from stacks import batch, moved, randomise
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada import QuantaConfig
from lorada.tuners.base.merged_weights import merge_all
from lorada.tuners.quanta.gates import as_matrix_reference
from lorada.tuners.quanta.quanta import QuantaLayer

pytestmark = pytest.mark.fp64

# Architecture -> the matrices that have gates when none are named, in all layers.
MATRICES = {
    "llama": 4, "mistral": 4, "qwen2": 4, "qwen3": 4, "bert": 4, "roberta": 4, "deberta_v2": 4,
    "bart": 12, "mbart": 12, "t5": 12, "gpt2": 2, "opt": 4,
}  # fmt: skip
WIDTH_32 = 240  # numbers of the gates of 4-2-2-2


def layers(model: nn.Module) -> list[QuantaLayer]:
    return [module for module in model.modules() if isinstance(module, QuantaLayer)]


def dense_change(layer: QuantaLayer, name: str = "default") -> Tensor:
    """T - S of one layer as (out, in), cropped and padded number by number."""
    gates = layer.lora_gates[name]
    whole = as_matrix_reference(gates.trained(), gates.dims)
    whole = whole - as_matrix_reference(gates.start(), gates.dims)
    change = whole.new_zeros(layer.out_features, layer.in_features)
    whole = whole[: layer.out_features, : layer.in_features]
    change[: whole.shape[0], : whole.shape[1]] = whole
    return change


def wrapped(*sizes: int, conv: bool = False, **options) -> QuantaLayer:
    """One linear layer of so many inputs and outputs, its gates moved."""
    base = Conv1D(sizes[1], sizes[0]) if conv else nn.Linear(*sizes)
    config = QuantaConfig(target_modules=["0"], **options)
    return moved(nn.Sequential(base), config).base_model.model[0]


SIDES = {
    "square": ((24, 24), [4, 3, 2]),
    "default": ((24, 24), None),
    "fewer outputs": ((24, 8), [4, 3, 2]),
    "more outputs": ((24, 66), [4, 3, 2]),
    "dims of the outputs": ((66, 24), [4, 3, 2]),
    "two axes": ((24, 24), "6-4"),
}


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("case", SIDES)
def test_layer_adds_the_dense_difference_in_values_and_gradients(case, conv):
    sizes, dims = SIDES[case]
    layer = wrapped(*sizes, conv=conv, dims=dims)
    base = layer.base_layer
    weight = (base.weight.T if conv else base.weight).detach().clone()
    x = torch.randn(2, 5, sizes[0], dtype=torch.float64, requires_grad=True)

    change = dense_change(layer)
    expected = x @ weight.T + base.bias + x @ change.T
    assert change.abs().max() > 0.1
    gates = layer.lora_gates["default"].trained()
    assert_same_gradients(layer(x), expected, [x, *gates])
    layer.eval()
    merge_all(nn.Sequential(layer), ["default"])
    assert_close((base.weight.T if conv else base.weight) - weight, change)


@pytest.mark.parametrize("name", MATRICES)
def test_only_the_gates_train_and_the_start_is_the_base_exactly(name):
    base = ARCHITECTURES[name]()
    batch_ = inputs(name)
    expected = logits(base, **batch_)
    model = get_peft_model(base, QuantaConfig()).eval()
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}

    assert torch.equal(logits(model, **batch_), expected)
    assert all(".lora_gates." in n for n in trained)
    assert sum(trained.values()) == MATRICES[name] * WIDTH_32
    randomise(model)
    assert (logits(model, **batch_) - expected).abs().max() > 1e-2


@pytest.mark.fp64(False)
def test_gates_that_a_trainer_casts_start_as_the_base_and_are_saved_as_they_train(tmp_path):
    """TRL casts parameters on a quantised base, and no buffers, so not the gates of S."""
    base, batch_ = TINY["llama"](), batch("llama")
    expected = logits(base, **batch_)
    model = get_peft_model(base, QuantaConfig())
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.bfloat16()
    assert torch.equal(logits(model, **batch_), expected)
    model(**batch_).logits.sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.any() for p in trained)

    randomise(model)
    difference = [dense_change(layer.float()) for layer in layers(copy.deepcopy(model))]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    for layer, change in zip(layers(loaded), difference, strict=True):
        assert torch.equal(dense_change(layer), change)


@pytest.mark.fp64(False)
def test_autocast_leaves_the_difference_its_precision():
    layer = wrapped(64, 64)
    with torch.no_grad():
        for gate, start in zip(*both(layer), strict=True):
            gate.copy_(start + 1e-4 * torch.randn(start.shape))
    x = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change = layer.lora_gates["default"](x, 64)
    expected = x.double() @ dense_change(layer.double()).T
    assert change.dtype == torch.float32
    # The difference of two bf16 products would be wrong in its first digit.
    assert (change - expected).norm() < 1e-2 * expected.norm()


def both(layer: QuantaLayer) -> tuple[list[Tensor], list[Tensor]]:
    gates = layer.lora_gates["default"]
    return gates.trained(), gates.start()


def test_model_without_default_targets_is_told_what_it_has():
    with pytest.raises(ValueError, match=r"for custom models: choose some of 0, 1$"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), QuantaConfig())


def gates_file(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


# Saving and loading.


def test_names_in_the_file_are_plain_and_without_the_adapter_s():
    keys = get_peft_model_state_dict(moved(TINY["llama"](), QuantaConfig())).keys()
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_gates"
    own = {key.removeprefix(f"{place}.") for key in keys if key.startswith(place)}
    gates = {"4_3", "4_2", "4_1", "3_2", "3_1", "2_1"}
    assert own == gates | {f"start_{gate}" for gate in gates}


def test_matrices_that_are_not_square_take_the_hidden_width_on_both_sides():
    names = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(TINY["llama"](), QuantaConfig(target_modules=names))
    assert {tuple(q.lora_gates["default"].dims) for q in layers(model)} == {(4, 2, 2, 2)}


def test_dropout_is_on_what_the_change_reads_and_only_in_training():
    layer = wrapped(24, 24, dropout=0.5)
    x = torch.randn(4, 24, dtype=torch.float64)
    plain = layer.eval()(x)
    assert_close(plain, layer.base_layer(x) + x @ dense_change(layer).T)
    torch.manual_seed(1)
    dropped = layer.train()(x)
    torch.manual_seed(1)
    seen = F.dropout(x, 0.5, True)
    assert_close(dropped, layer.base_layer(x) + seen @ dense_change(layer).T)


@pytest.mark.parametrize("width", [1, 2, 31])
def test_a_width_without_two_factors_asks_to_leave_the_module_out(width):
    message = f"0 has no default dims: a width of {width} is no product of two factors"
    with pytest.raises(ValueError, match=message):
        get_peft_model(nn.Sequential(nn.Linear(width, width)), QuantaConfig(target_modules=["0"]))
