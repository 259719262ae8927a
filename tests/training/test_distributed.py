"""``accelerate launch`` with two gloo processes: the losses and the adapter of one process.

All are in fp64, as two processes add up the loss and the gradients of a batch in another order
than one.
"""

import json
import shutil
import sys

import distributed_worker
import pytest
import torch
from conftest import assert_close
from folders import llama_folder
from peft import PeftModel
from programs import printed
from stacks import logits
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.fp64

FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
# `--multi_gpu` is what starts several processes; the worker says that they train on the CPU.
# With the class of what the processes share.
LAUNCH = {
    "ddp": (["--multi_gpu"], "DistributedDataParallel"),
    "fsdp2_sharded": (
        [*FSDP2, "--fsdp_state_dict_type", "SHARDED_STATE_DICT"], "FSDPLlamaDecoderLayer"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(path, initializer_range=0.2, attention_dropout=0.0))


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The run of one process, with its folder."""
    output = tmp_path_factory.mktemp("alone")
    return distributed_worker.main(folder, str(output)), output


def launch(kind, folder, output, *options):
    """Run the worker in two processes."""
    port = ["--main_process_port", "0"]  # any free one
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *port]
    words, wrapper = LAUNCH[kind]
    command += [*words, distributed_worker.__file__, folder, str(output), *options]
    printed(*command, OMP_NUM_THREADS="1")
    report = json.loads((output / "report.json").read_text())
    assert report["processes"] == 2
    assert wrapper in report["kinds"]
    return report


def assert_same_run(report, output, alone, folder):
    expected, other = alone
    assert_close(torch.tensor(report["losses"]), torch.tensor(expected["losses"]))
    batch = {"input_ids": torch.arange(5, 45).view(4, 10)}
    here, there = (
        logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), path), batch)
        for path in (str(output / "adapter"), str(other / "adapter"))
    )
    assert_close(here, there)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAUNCH)
def test_two_processes_come_to_the_end_of_one_and_resume_where_they_stopped(
    kind, folder, alone, tmp_path
):
    reentrant = ["1"] if kind == "ddp" else []  # its activations are computed again
    assert_same_run(launch(kind, folder, tmp_path, *reentrant), tmp_path, alone, folder)
    shutil.rmtree(tmp_path / "checkpoint-4")
    shutil.rmtree(tmp_path / "adapter")
    report = launch(kind, folder, tmp_path, *reentrant)
    assert_same_run(report, tmp_path, alone, folder)
