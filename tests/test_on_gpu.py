"""What only an accelerator can show: kernels, their rounding, and several of them at once.

``pytest -m gpu`` runs these on the first accelerator; without one they are skipped.
``LORADA_TEST_DEVICE=cpu`` tries the tests themselves.
"""

import copy
import functools
import json
import os
import sys

import exact_cells
import pytest
import torch
from exact_cells import CELLS, COVERED, adapted, alone, assert_as_plain
from folders import llama_folder, rows_file
from programs import printed
from trained_runs import QUICK, before_its_end, run_recipe
from transformers.utils import is_flash_attn_2_available

from lorada.inference.load import load_run
from lorada.training.train import train

pytestmark = pytest.mark.gpu
SETTINGS = [*QUICK, "max_steps=4", "save_steps=2", "learning_rate=1e-2"]
WIDE = {"hidden_size": 64, "intermediate_size": 64}  # a block of nf4 is 64 numbers
FEWER = COVERED[::3]  # a CPU has computed them all
# Cells that flash attention has kernels for, in which no token is chosen by its rounding.
FLASH_CELLS = (
    "padded on the left, positions given", "padded on the right", "packed by position_ids",
    "packed by cu_seq_lens", "dynamic cache", "prefill, then steps", "chunks",
)  # fmt: skip


def device_name():
    if asked := os.environ.get("LORADA_TEST_DEVICE"):
        return asked
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type


@pytest.fixture
def device():
    """The kind of the device."""
    name = device_name()
    if name is None:
        pytest.skip("torch finds no accelerator")
    return name


@pytest.fixture
def made_there(device, monkeypatch):
    """Makes every tensor on the device that names no other; a data loader cannot work so."""
    torch.set_default_device(device)
    monkeypatch.setattr(exact_cells, "PROMPTS", [ids.to(device) for ids in exact_cells.PROMPTS])
    yield device
    torch.set_default_device(None)


@pytest.fixture
def same_kernels(monkeypatch):
    """Lets a device compute the same numbers each time, where its kernels can."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("gpu")
    llama_folder(place / "llama", initializer_range=0.2, **WIDE)
    llama_folder(place / "no_dropout", initializer_range=0.2, attention_dropout=0.0)
    rows_file(place / "rows.jsonl")
    return place


def recipe(place, output, *pairs, method="lora+lmam"):
    on_cpu = [f"use_cpu={str(device_name() == 'cpu').lower()}"]
    return run_recipe([*SETTINGS, *on_cpu], place, output, *pairs, rows="rows", method=method)


def logits(run):
    with torch.no_grad():
        return run.model(torch.arange(5, 25, device=run.model.device)[None]).logits


@functools.cache
def plain_run(name, variant, dtype):
    """As that of the exactness cells, on the device and in a dtype."""
    return exact_cells.plain_run.__wrapped__(name, variant)


@pytest.mark.fp64
@pytest.mark.parametrize(("name", "cell", "variant"), FEWER, ids=lambda part: part)
def test_every_form_of_a_batch_gives_the_numbers_of_the_plain_run_on_sdpa(
    made_there, name, cell, variant
):
    samples, expected = plain_run(name, variant, "float64")
    found = CELLS[cell](adapted(name, variant), samples)
    assert all(plain.device.type == made_there for plain in expected)
    assert_as_plain(cell, samples, found, expected)


@pytest.mark.parametrize("variant", ["map", "end", "softmax"])
@pytest.mark.parametrize("cell", FLASH_CELLS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_flash_attention_rounds_and_no_more(made_there, name, cell, variant):
    device = made_there
    if variant == "end" and cell in exact_cells.CACHE_CELLS:
        pytest.skip("a map at the end moves with each step")
    if device == "cuda" and not is_flash_attn_2_available():
        pytest.skip("no flash attention: pip install flash-attn")
    exact = adapted(name, variant)
    samples, expected = plain_run(name, variant, "float32")
    narrow = copy.deepcopy(exact)
    for weight, parameter in narrow.named_parameters():
        if "lora_" not in weight:  # what trains is in fp32
            parameter.data = parameter.data.bfloat16()
    narrow.set_attn_implementation("flash_attention_2" if device == "cuda" else "sdpa")
    own = max(
        float((alone(narrow, sample) - plain).abs().max())
        for sample, plain in zip(samples, expected, strict=True)
    )
    for each, plain in zip(CELLS[cell](narrow, samples), expected, strict=True):
        assert float((each - plain[-len(each) :]).abs().max()) <= 4 * own
    assert own < 0.1 * max(float(plain.abs().max()) for plain in expected)


@pytest.mark.filterwarnings("ignore:.*deterministic")  # a kernel that has no such form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_comes_to_the_same_end_bit_for_bit(
    device, place, tmp_path, dtype, same_kernels
):
    asked = f"dtype={dtype}"
    whole = train(recipe(place, tmp_path / "whole", asked), quiet=True).run
    cut = before_its_end(whole, tmp_path / "cut")
    resumed = train(recipe(place, cut, asked), resume=True, quiet=True)
    assert resumed.result.resumed_from == "checkpoint-2"
    assert torch.equal(logits(load_run(cut)), logits(load_run(whole)))


def test_a_run_on_nf4_weights_loads_onto_them_again(device, place, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the bnb extra: pip install 'lorada[bnb]'")
    run = train(recipe(place, tmp_path / "run", "quantization=nf4"), quiet=True)
    assert run.result.steps == 4
    loaded = load_run(run.run)
    assert loaded.model.get_base_model().is_quantized
    assert loaded.model.device.type == device
    first = logits(loaded)
    assert torch.equal(first, logits(load_run(run.run)))
    with loaded.model.disable_adapter():
        assert not torch.allclose(first, logits(loaded))


def test_two_processes_train_what_one_does(device, place, tmp_path):
    if device != "cpu" and torch.accelerator.device_count() < 2:
        pytest.skip("needs two accelerators")
    words = [
        "--method", "lora+lmam", "--model", str(place / "no_dropout"), "--data",
        str(place / "rows.jsonl"), *SETTINGS, "save_strategy=no", "dtype=float32",
        "lora.lora_dropout=0", f"use_cpu={str(device == 'cpu').lower()}",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"]
    losses = {}
    for name, command, rows in (("one", [sys.executable, "-m"], 4), ("two", launch, 2)):
        output = tmp_path / name
        batch = f"per_device_train_batch_size={rows}"
        printed(*command, "lorada.cli", "train", *words, batch, "--output", output,
                OMP_NUM_THREADS="1")  # fmt: skip
        losses[name] = json.loads((output / "result.json").read_text())["train_loss"]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)
