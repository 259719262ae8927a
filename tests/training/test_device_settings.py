"""``dtype=auto``, and what the Trainer is told of the devices that it runs on."""

from functools import partial
from types import SimpleNamespace

import fake_devices
import pytest
import torch
import yaml
from folders import refused
from trained_runs import run_recipe
from transformers import LlamaConfig, TrainingArguments, training_args

from lorada import METHODS
from lorada.inference.load import load_run
from lorada.support.processes import GPU_SHARE
from lorada.training import arguments
from lorada.training import setup as training_setup
from lorada.training.arguments import (
    answering_device,
    device_settings,
    loading_device,
    take_one_device,
    with_dtype,
)
from lorada.training.inputs import prepare_training
from lorada.training.models import loading
from lorada.training.train import train

on = fake_devices.on
QUICK = ["max_steps=1", "report_to=[]", "max_length=32", "save_strategy=no"]


@pytest.fixture
def recipe(place, tmp_path):
    return partial(run_recipe, QUICK, place, tmp_path / "run", rows="rows", method="lora")


@pytest.mark.parametrize(
    ("device", "saved", "dtype"),
    [
        (None, "bfloat16", "float32"),
        ("mps", "bfloat16", "float32"),
        ("cuda", "bfloat16", "mixed"),
        ("cuda", "float16", "mixed"),
        ("cuda", "float32", "float32"),
        ("cuda", None, "float32"),
        ("xpu", "bfloat16", "mixed"),
        ("cuda without bf16", "bfloat16", "mixed_float16"),
        ("cuda without bf16", "float16", "mixed_float16"),
        ("cuda without bf16", "float32", "float32"),
        ("xpu without bf16", "bfloat16", "float32"),
    ],
)
def test_auto_is_the_dtype_of_the_checkpoint_on_an_accelerator(on, recipe, device, saved, dtype):
    on(device and device.split()[0], bf16=not (device and "without" in device))
    config = LlamaConfig(dtype=saved and getattr(torch, saved))
    assert recipe().dtype == "auto"
    assert with_dtype(recipe(), config).dtype == dtype
    assert with_dtype(recipe("dtype=float64"), config).dtype == "float64"
    assert with_dtype(recipe("use_cpu=true"), config).dtype == "float32"


LOADER = {"dataloader_num_workers": 2, "dataloader_pin_memory": True}


def test_fp16_has_a_scaled_loss_and_needs_an_accelerator(on, recipe, caplog):
    refused(
        "dtype=mixed_float16 trains on an accelerator alone",
        lambda: arguments.training_arguments(recipe("dtype=mixed_float16")),
    )
    on("cuda", bf16=False, capability=(7, 5))
    found = with_dtype(recipe(), LlamaConfig(dtype=torch.float16))
    assert (found.base_dtype, found.mixed) == ("float16", True)
    # The Trainer scales the loss where it is told fp16.
    assert device_settings(found) == {**LOADER, "fp16": True}
    assert "takes mixed_float16 on this device, which is float16 with float32" in caplog.text
    assert device_settings(recipe("dtype=float32")) == LOADER


def test_the_trainer_gets_autocast_tf32_and_workers_on_an_accelerator_only(on, recipe):
    narrow = recipe("dtype=bfloat16")
    assert device_settings(narrow) == {}
    assert device_settings(recipe("dtype=mixed")) == {"bf16": True, "use_cpu": True}
    on("cuda")
    assert device_settings(narrow) == {**LOADER, "bf16": True, "tf32": True}
    assert device_settings(recipe("dtype=float32")) == {**LOADER, "tf32": True}
    assert device_settings(recipe("dtype=bfloat16", "fp16=true")) == {**LOADER, "tf32": True}
    assert device_settings(recipe("dtype=bfloat16", "use_cpu=true")) == {}
    on("xpu")
    assert device_settings(narrow) == {**LOADER, "bf16": True}


def test_a_setting_of_the_recipe_goes_before_that_of_the_device(recipe, monkeypatch):
    monkeypatch.setattr(arguments, "device_settings", lambda given: LOADER)
    for pairs, workers in ((("dataloader_num_workers=0",), 0), ((), 2)):
        args = arguments.training_arguments(recipe(*pairs))
        assert (args.dataloader_num_workers, args.dataloader_pin_memory) == (workers, True)


def test_of_several_devices_the_first_is_taken_and_a_line_says_how_to_use_all(tmp_path, caplog):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    args._n_gpu = 2
    assert args.train_batch_size == 16
    take_one_device(args)
    assert (args.n_gpu, args.train_batch_size) == (1, 8)
    assert caplog.messages == [
        "2 devices are visible and one process uses the first. To use all: torchrun "
        "--nproc_per_node 2 -m lorada.cli train …"
    ]
    take_one_device(args)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("is_spread", "said"), [(True, []), (False, ["--gpus-per-job 1"])])
def test_a_job_of_a_comparison_is_not_told_of_torchrun(
    tmp_path, caplog, monkeypatch, is_spread, said
):
    monkeypatch.setenv(GPU_SHARE, "1.0")
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    args._n_gpu = 2
    take_one_device(args, is_spread=is_spread)
    assert args.n_gpu == 1
    assert [message.split(". ")[1][:16] for message in caplog.messages] == said


@pytest.mark.more
def test_the_stored_recipe_holds_what_was_taken(recipe, monkeypatch):
    run = train(recipe(), quiet=True).run
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (stored["dtype"], stored["activation_checkpointing"]) == ("float32", "off")
    monkeypatch.setattr(training_setup, "needs_recomputing", lambda *args, **kwargs: True)
    train(recipe("dtype=bfloat16"), quiet=True, overwrite=True)
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (stored["dtype"], stored["activation_checkpointing"]) == ("bfloat16", "full")
    assert next(load_run(run).model.parameters()).dtype == torch.bfloat16


def test_a_run_is_resumed_with_the_dtype_that_it_began_with(recipe, tmp_path, monkeypatch):
    asked = ("max_steps=2", "save_strategy=steps", "save_steps=1")
    run = train(recipe(*asked, "dtype=bfloat16"), quiet=True).run
    (run / "result.json").unlink()
    again = train(recipe(*asked), quiet=True, resume=True)
    assert again.result.resumed_from == "checkpoint-2"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["dtype"] == "bfloat16"
    (run / "result.json").unlink()
    other = recipe(*asked, "dtype=float32")
    refused("had dtype='bfloat16', not 'float32'", lambda: train(other, quiet=True, resume=True))


@pytest.mark.parametrize(("tf32", "known"), [("true", "high"), ("false", "highest")])
def test_torchs_compiler_learns_whether_products_are_tf32(tf32, known, recipe, monkeypatch):
    monkeypatch.setattr(training_args, "is_torch_tf32_available", lambda: True)
    training_args.enable_tf32.cache_clear()
    try:
        asked = recipe(f"training.tf32={tf32}", "training.torch_compile_mode=max-autotune")
        arguments.training_arguments(asked)
        # max-autotune asks so; torch raised here, as transformers sets another name.
        assert torch.get_float32_matmul_precision() == known
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("method", "pairs", "searches"),
    [
        ("lora", (), False),
        ("full", (), False),
        ("ist", (), True),  # in each step some layers get no gradient
        ("owlore_full", (), True),
        ("lora", ("pooling=mean",), True),  # nor do the layers that a pooling passes over
        ("ist", ("training.ddp_find_unused_parameters=false",), False),
    ],
)
def test_processes_search_for_what_has_no_gradient_only_where_there_is_any(
    recipe, method, pairs, searches
):
    args = arguments.training_arguments(recipe(*pairs), METHODS[method].arguments, quiet=True)
    assert args.ddp_find_unused_parameters == searches


@pytest.mark.parametrize("by", ["recipe", "accelerate"])
def test_deepspeed_is_refused(by, recipe, monkeypatch):
    if by == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    asked = recipe(*(["training.deepspeed=zero2.json"] if by == "recipe" else []))
    refused("under DeepSpeed is not tested: use", lambda: arguments.training_arguments(asked))


def test_weights_are_loaded_where_they_go(recipe, monkeypatch, tmp_path):
    args = SimpleNamespace(fsdp=[], use_cpu=False, device=torch.device("cuda", 0))
    assert loading_device(args) == torch.device("cuda", 0)
    for changed in ({"fsdp": ["full_shard"]}, {"device": torch.device("cpu")},
                    {"device": torch.device("mps")}):  # fmt: skip
        assert loading_device(SimpleNamespace(**{**vars(args), **changed})) is None

    seen, plain = [], loading.AutoModelForCausalLM.from_pretrained

    def from_pretrained(*given, device_map=None, **more):
        seen.append(device_map)
        return plain(*given, **more)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(training_setup, "loading_device", lambda args: torch.device("cuda", 1))
    run = train(recipe(), quiet=True).run
    monkeypatch.setattr("lorada.inference.load.answering_device", lambda _: torch.device("cuda"))
    load_run(run)
    assert seen == [{"": torch.device("cuda", 1)}, {"": torch.device("cuda")}]
    load_run(run, to_merge=True)  # of an export, for which a card that holds 4 bits has no room
    assert seen[2] is None


def test_a_run_answers_on_the_device_that_trains_it(on, recipe):
    four_bits = recipe("quantization=nf4")
    for kind in ("mps", "cuda"):
        on(kind)
        assert answering_device(recipe()) == torch.device(kind)
    on("mps")
    assert answering_device(four_bits) is None
    for bits in ("nf4", "int8"):
        said = f"quantization={bits} does not train on MPS: leave it out"
        refused(said, lambda bits=bits: prepare_training(recipe(f"quantization={bits}")))
    prepare_training(recipe("quantization=nf4", "training.use_cpu=true"))
    on(None)
    assert answering_device(recipe()) is None
