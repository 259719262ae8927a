"""Train LoRA on prompts and responses with TRL's SFTTrainer, and leave stamps.

    python train_with_trl.py --model DIR --data ROWS.jsonl --output DIR [--packing] [--recompute]

What is set is what ``lorada train`` has by default and TRL has not; all else is as TRL has it.
"""

import argparse
from json import loads
from pathlib import Path

import stamps
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    given = parser.parse_args()
    lines = Path(given.data).read_text(encoding="utf-8").splitlines()
    rows = [loads(line) for line in lines]
    pairs = [{"prompt": row["prompt"], "completion": row["response"]} for row in rows]
    found = stamps.watch_training()
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(given.model, dtype="float32"),
        SFTConfig(
            given.output, num_train_epochs=1, per_device_train_batch_size=8, learning_rate=1e-3,
            lr_scheduler_type="linear", warmup_steps=0.03, max_length=512, packing=given.packing,
            use_cpu=True, bf16=False, gradient_checkpointing=given.recompute, report_to="none",
            save_strategy="no", dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.05, task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        ),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    stamps.write(found, "trl", "transformers", "torch", "peft")


if __name__ == "__main__":
    main()
