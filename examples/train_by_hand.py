"""What `lorada train` does for one file of rows, with transformers, PEFT and lorada.

    python examples/train_by_hand.py MODEL ROWS.jsonl ADAPTER_FOLDER

learns the same as

    lorada train --method lorada_la --model MODEL --data ROWS.jsonl --output RUN

which also reads other forms of rows, checks them, keeps checkpoints, and writes down what was done.
Each row is {"prompt": …, "response": …}, and the model is a decoder.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lorada

MAX_LENGTH = 512  # tokens of a row
IGNORED = -100  # the label of tokens that are read and not learned


def encode(row, tokenizer):
    """The token ids of a row, with labels for its response and the end token alone."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    response = tokenizer(row["response"] + tokenizer.eos_token, add_special_tokens=False)[
        "input_ids"
    ]
    if len(prompt) + len(response) > MAX_LENGTH:
        raise ValueError(f"a row has more than {MAX_LENGTH} tokens: {row['prompt'][:60]!r}…")
    ids = prompt + response
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORED] * len(prompt) + response,
    }


def main(model_name, rows_file, adapter_folder):
    """Train an adapter on the rows and save it."""
    arguments = TrainingArguments(
        output_dir=adapter_folder,
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        warmup_steps=0.03,  # a share of all steps
        logging_steps=10,
        save_strategy="no",
        report_to=[],
    )
    set_seed(arguments.seed)  # draws the first weights of the adapter

    # Rows become token ids and labels. A batch is padded to its longest row, labels with IGNORED.
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    lines = Path(rows_file).read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([encode(json.loads(line), tokenizer) for line in lines])
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)

    # The base gets the parts of the method: a map in attention, LoRA, and adapters in the FFN. All
    # else is frozen.
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    method = lorada.build_method("lorada_la", base.config)
    model = get_peft_model(base, method.config)
    model.print_trainable_parameters()

    # The factors of a map have 0.4 times the learning rate of the rest.
    rate = arguments.learning_rate
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if ".lmam." in name], "lr": 0.4 * rate},
        {"params": [weight for name, weight in trained if ".lmam." not in name], "lr": rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    trainer = Trainer(model, arguments, collator, rows, optimizers=(optimizer, None))

    trainer.train()
    model.save_pretrained(adapter_folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
