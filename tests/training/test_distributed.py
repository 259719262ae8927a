"""``accelerate launch`` with two gloo processes: a plain Trainer on a stack, as in one process.

    test_distributed.py MODEL OUTPUT [REENTRANT]

is what each process runs. The batch is 4 rows over all processes. With REENTRANT, which is 0 or 1,
activations are computed again. A checkpoint that OUTPUT holds is resumed. All is in fp64, as two
processes add up the loss and the gradients of a batch in another order than one.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType, PartialState
from conftest import assert_close
from folders import ROWS, llama_folder
from in_double import in_double
from peft import PeftModel, get_peft_model
from programs import printed
from stacks import logits, training_stack
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

BATCH = 4
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
# `--multi_gpu` is what starts several processes; they say that they train on the CPU. With what
# follows the folders, and the class of what the processes share.
LAUNCH = {
    "ddp": (["--multi_gpu"], ["1"], "DistributedDataParallel"),
    "fsdp2_sharded": (
        [*FSDP2, "--fsdp_state_dict_type", "SHARDED_STATE_DICT"], [], "FSDPLlamaDecoderLayer"
    ),
}  # fmt: skip


@in_double()
def trained(folder: str, output: str, reentrant: str | None = None) -> Trainer:
    """Train, and save ``OUTPUT/adapter``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args = TrainingArguments(
        output, use_cpu=True, max_steps=4, learning_rate=1e-2, logging_steps=1, save_steps=2,
        report_to=[], disable_tqdm=True, gradient_checkpointing=reentrant is not None,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant == "1"},
        # DDP's search for unused parameters and reentrant checkpoints exclude each other.
        ddp_find_unused_parameters=False if reentrant == "1" else None,
    )  # fmt: skip
    args.per_device_train_batch_size = BATCH // args.world_size
    if os.environ.get("ACCELERATE_USE_FSDP"):
        # accelerate allows FSDP between accelerators only, by this one name; torch also between
        # CPUs. Sharding, training and saving are then what they are on accelerators.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = Trainer(
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder).double(), training_stack()),
        args,
        train_dataset=[tokenizer(row["prompt"] + row["response"]) for row in ROWS],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    if trainer.is_fsdp_enabled:  # as the Trainer asks for where checkpoints are sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(f"{output}/adapter")
    return trainer


def numbers(trainer, folder, output):
    """The losses of a training, and what its adapter answers."""
    losses = [entry["loss"] for entry in trainer["log_history"] if "loss" in entry]
    batch = {"input_ids": torch.arange(5, 45).view(4, 10)}
    base = AutoModelForCausalLM.from_pretrained(folder)
    return torch.tensor(losses), logits(PeftModel.from_pretrained(base, f"{output}/adapter"), batch)


@pytest.mark.slow
@pytest.mark.fp64
@pytest.mark.parametrize("kind", LAUNCH)
def test_two_processes_come_to_the_end_of_one_and_resume_where_they_stopped(
    kind, tmp_path, tmp_path_factory
):
    folder = llama_folder(tmp_path / "llama", initializer_range=0.2, attention_dropout=0.0)
    alone, two = (tmp_path_factory.mktemp(name) for name in ("alone", "two"))
    expected = numbers(vars(trained(str(folder), str(alone)).state), folder, alone)
    words, options, wrapper = LAUNCH[kind]
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *words)
    port = ("--main_process_port", "0")  # any free one
    where = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in ("from its start", "from the middle"):
        printed(*launch, *port, __file__, folder, two, *options, **where)
        report = json.loads((two / "report.json").read_text())
        assert (report["processes"], wrapper in report["kinds"]) == (2, True)
        for found, other in zip(numbers(report, folder, two), expected, strict=True):
            assert_close(found, other)
        shutil.rmtree(two / "checkpoint-4")
        shutil.rmtree(two / "adapter")


if __name__ == "__main__":
    trainer = trained(*sys.argv[1:])
    report = {
        "processes": trainer.args.world_size,
        "log_history": trainer.state.log_history,
        "kinds": sorted({type(module).__name__ for module in trainer.model_wrapped.modules()}),
    }
    if PartialState().is_main_process:
        Path(sys.argv[2], "report.json").write_text(json.dumps(report))
