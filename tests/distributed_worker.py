"""One run of the plain Trainer on a stack, in as many processes as ``accelerate launch`` starts.

    distributed_worker.py MODEL OUTPUT [REENTRANT]

The batch is 4 rows over all processes. With REENTRANT, which is 0 or 1, the run checkpoints
activations. A checkpoint that OUTPUT holds is resumed.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from double import in_double
from folders import ROWS
from peft import get_peft_model
from stacks import training_stack
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

BATCH = 4


def arguments(output: str, reentrant: str | None) -> TrainingArguments:
    own = TrainingArguments(
        output_dir=output,
        use_cpu=True,
        max_steps=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=reentrant is not None,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant == "1"},
        # DDP's search for unused parameters and reentrant checkpoints exclude each other.
        ddp_find_unused_parameters=False if reentrant == "1" else None,
    )
    own.per_device_train_batch_size = BATCH // own.world_size
    if os.environ.get("ACCELERATE_USE_FSDP"):
        # accelerate allows FSDP between accelerators only, by this one name; torch also between
        # CPUs. Sharding, training and saving are then what they are on accelerators.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return own


@in_double()
def main(folder: str, output: str, reentrant: str | None = None) -> dict[str, Any]:
    """Train, save ``OUTPUT/adapter``, and return what the run was."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = Trainer(
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder).double(), training_stack()),
        arguments(output, reentrant),
        train_dataset=[tokenizer(row["prompt"] + row["response"]) for row in ROWS],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    if trainer.is_fsdp_enabled:  # as the Trainer asks for where checkpoints are sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(f"{output}/adapter")
    return {
        "processes": trainer.args.world_size,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "kinds": sorted({type(module).__name__ for module in trainer.model_wrapped.modules()}),
    }


if __name__ == "__main__":
    report = main(*sys.argv[1:])
    if PartialState().is_main_process:
        Path(sys.argv[2], "report.json").write_text(json.dumps(report))
