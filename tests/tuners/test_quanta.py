"""QuantaConfig and the operator of its gates, fast against slow; counts, the start, files."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, inputs, logits
from conftest import TINY, assert_close, assert_same_gradients
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from stacks import batch, moved, randomise
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada import QuantaConfig
from lorada.tuners.base.merged_weights import merge_all
from lorada.tuners.quanta.gates import (
    apply_gates,
    apply_to_width,
    default_dims,
    draw_gates,
    factorisations,
    pairs,
)
from lorada.tuners.quanta.quanta import QuantaLayer

pytestmark = pytest.mark.fp64

# Architecture -> the matrices that have gates when none are named, in all layers.
MATRICES = {
    "llama": 4, "mistral": 4, "qwen2": 4, "qwen3": 4, "bert": 4, "roberta": 4, "deberta_v2": 4,
    "bart": 12, "mbart": 12, "t5": 12, "gpt2": 2, "opt": 4,
}  # fmt: skip
WIDTH_32 = 240  # numbers of the gates of 4-2-2-2


def as_matrix_reference(gates, dims):
    """T as a dense D × D matrix: the slow twin of ``apply_gates``.

    Each gate becomes a D × D matrix, G on its two axes and the identity on all others. T is the
    product of these matrices, with that of the first gate on the right.
    """
    n, width = len(dims), math.prod(dims)
    whole = torch.eye(width, dtype=gates[0].dtype, device=gates[0].device)
    for (a, b), gate in zip(pairs(n), gates, strict=True):
        d_a, d_b = dims[a - 1], dims[b - 1]
        # einsum gets index c for axis c of the output, and n + c for axis c of the input.
        operands = [gate.reshape(d_a, d_b, d_a, d_b), [a, b, n + a, n + b]]
        # The gate does not change the other axes.
        for c in set(range(1, n + 1)) - {a, b}:
            operands += [torch.eye(dims[c - 1]).to(gate), [c, n + c]]
        dense = torch.einsum(*operands, list(range(1, 2 * n + 1)))
        whole = dense.reshape(width, width) @ whole
    return whole


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
    gates = layer.lora_gates["default"]
    with torch.no_grad():
        for gate, start in zip(gates.trained(), gates.start(), strict=True):
            gate.copy_(start + 1e-4 * torch.randn(start.shape))
    x = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change = gates(x, 64)
    expected = x.double() @ dense_change(layer.double()).T
    assert change.dtype == torch.float32
    # The difference of two bf16 products would be wrong in its first digit.
    assert (change - expected).norm() < 1e-2 * expected.norm()


def test_model_without_default_targets_is_told_what_it_has():
    with pytest.raises(ValueError, match=r"for custom models: choose some of 0, 1$"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), QuantaConfig())


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


DIMS = [(3, 2), (4, 3, 2), (2, 2, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2)]
every_dims = pytest.mark.parametrize("dims", DIMS, ids=lambda d: "-".join(map(str, d)))


def random_gates(dims) -> list[Tensor]:
    return [gate.double().requires_grad_() for gate in draw_gates(dims)]


def by_hand(x: Tensor, gate: Tensor, dims, a: int, b: int) -> Tensor:
    """One gate on axes a and b of one vector: the sum as it is printed, number by number."""
    x = x.reshape(dims)
    out = torch.zeros_like(x)
    for place in itertools.product(*map(range, dims)):
        for i_a, i_b in itertools.product(range(dims[a - 1]), range(dims[b - 1])):
            source = list(place)
            source[a - 1], source[b - 1] = i_a, i_b
            row = place[a - 1] * dims[b - 1] + place[b - 1]
            out[place] += gate[row, i_a * dims[b - 1] + i_b] * x[tuple(source)]
    return out.flatten()


@every_dims
def test_gates_one_after_another_are_the_printed_sums_and_a_matrix_of_full_rank(dims):
    gates, width = random_gates(dims), math.prod(dims)
    expected = x = torch.randn(width, dtype=torch.float64)
    for (a, b), gate in zip(pairs(len(dims)), gates, strict=True):
        expected = by_hand(expected, gate.detach(), dims, a, b)

    assert_close(apply_gates(x, gates, dims).detach(), expected)
    dense = as_matrix_reference(gates, dims)
    assert_close((dense @ x).detach(), expected)
    assert torch.linalg.matrix_rank(dense) == width


@every_dims
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0, 3)], ids=str)
def test_fast_and_dense_agree_in_values_and_gradients(dims, batch):
    gates, width = random_gates(dims), math.prod(dims)
    x = torch.randn(*batch, width, dtype=torch.float64, requires_grad=True)
    fast, slow = apply_gates(x, gates, dims), x @ as_matrix_reference(gates, dims).T
    assert_same_gradients(fast, slow, [x, *gates])


@pytest.mark.parametrize("columns", [20, 24, 30])
@pytest.mark.parametrize("rows", [20, 24, 30])
def test_other_widths_are_cropped_or_padded_with_zeros(rows, columns):
    dims = (4, 3, 2)
    gates = random_gates(dims)
    expected = torch.zeros(rows, columns, dtype=torch.float64)
    dense = as_matrix_reference(gates, dims)[:rows, :columns]
    expected[: dense.shape[0], : dense.shape[1]] = dense

    x = torch.randn(5, columns, dtype=torch.float64)
    assert_close(apply_to_width(x, gates, dims, rows), x @ expected.T)


def test_pairs_come_from_the_last_axes_to_the_first():
    assert pairs(4) == [(4, 3), (4, 2), (4, 1), (3, 2), (3, 1), (2, 1)]


def test_start_has_the_scale_of_the_paper_s_code():
    # Six gates, each of which shrinks a vector by √(1/3).
    dims = (16, 8, 8, 4)
    gates = draw_gates(dims)
    for gate in gates:
        bound = gate.shape[0] ** -0.5
        assert gate.abs().max() <= bound
        assert gate.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    x = torch.randn(32, 4096)
    ratio = (apply_gates(x, gates, dims).norm() / x.norm()).item()
    assert ratio == pytest.approx(27**-1.0, rel=0.2)


@pytest.mark.parametrize(
    ("width", "dims"),
    [
        pytest.param(4096, (16, 8, 8, 4), id="paper-4096"),
        pytest.param(5120, (16, 8, 8, 5), id="paper-5120"),
        pytest.param(576, (6, 6, 4, 4), id="576"),
        pytest.param(384, (6, 4, 4, 4), id="384"),
        pytest.param(768, (8, 6, 4, 4), id="768"),
        pytest.param(1024, (8, 8, 4, 4), id="1024"),
        pytest.param(8192, (16, 8, 8, 8), id="8192"),
        pytest.param(20, (5, 2, 2), id="three prime factors"),
        pytest.param(34, (17, 2), id="two prime factors"),
    ],
)
def test_width_is_factored_into_four_as_equal_as_possible(width, dims):
    assert default_dims(width) == dims
    if width not in (4096, 5120):
        others = factorisations(width, len(dims))
        assert dims in others
        assert all(math.prod(other) == width and sum(other) >= sum(dims) for other in others)
