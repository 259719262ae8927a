"""Part 5: trainings with what a GPU gets by default, beside TRL and PEFT's own Trainer."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu.machine import CannotRunError, Machine, find_tests, spread
from library.made_up_rows import training_rows, write_rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

TITLE = "Trainings with the defaults of a GPU"
ABOUT = (
    "A random model of Llama-3.1-8B's shape, LoRA of rank 8, 8 rows a step of at most 512 "
    "tokens; all else is as each side has it. *Even* rows have 512 tokens, *mixed* ones 16 to "
    "512, *2k* 2,048, and *8k* 8,192, of which a step has 2; *off* and *full* say whether "
    "activations are computed again. Every side logs each tenth step, in which a map's norm is "
    "measured too. 16 bits are bf16 on all sides, or fp16 where a card has no bf16 of its own. "
    "Tokens are those of the rows, without pads. Memory is the most that torch's allocator held; "
    "estimated is what `activation_checkpointing=auto` reckons with if nothing is computed again, "
    "to set beside *off*."
)
HEADER = (
    "what", "tokens a second", "peak memory, GiB", "estimated, GiB", "last loss", "steps",
)  # fmt: skip
SECONDS = 400
ALONE = True
STEPS, WARM, SHORTEST = 12, 2, 16
# Tokens of the longest row, and rows of a step; of rows in the tiny form, TINY_SIZE.
SIZES = {"even": (512, 8), "mixed": (512, 8), "2k": (2048, 8), "8k": (8192, 2)}
TINY_SIZE = (64, 2)
LOGGED = 10, 2  # steps from one log line to the next, also in the tiny form
OFF, FULL = (f"activation_checkpointing={how}" for how in ("off", "full"))
FLASH, FLEX = (f"attn_implementation={name}" for name in ("flash_attention_2", "flex_attention"))
COMPILED = [OFF, "torch_compile=true"]
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
# Side, rows and what differs. The method of the first is the same as that of the others.
CASES = {
    "lorada, LoRA, even": ("lora", "even", {}),
    "TRL, LoRA, even": ("trl", "even", {}),
    "PEFT and the Trainer, LoRA, even": ("peft", "even", {}),
    "lorada, LoRA and the map, even": ("lora+lmam", "even", {}),
    "lorada, LoRA, mixed": ("lora", "mixed", {}),
    "lorada, LoRA, mixed, packed": ("lora", "mixed", {"packing": True}),
    "lorada, LoRA and the map, mixed, packed": ("lora+lmam", "mixed", {"packing": True}),
    "TRL, LoRA, mixed, packed": ("trl", "mixed", {"packing": True}),
    "lorada, LoRA and the map, nf4, even": ("lora+lmam", "even", {"nf4": True}),
    "TRL, LoRA, nf4, even": ("trl", "even", {"nf4": True}),
    "lorada, LoRA and the map, even, off": ("lora+lmam", "even", {"settings": [OFF]}),
    "lorada, LoRA and the map, even, full": ("lora+lmam", "even", {"settings": [FULL]}),
    "lorada, LoRA, 2k": ("lora", "2k", {}),
    "lorada, LoRA and the map, 2k": ("lora+lmam", "2k", {}),
    "lorada, LoRA, 8k": ("lora", "8k", {}),
    "lorada, LoRA and the map, 8k": ("lora+lmam", "8k", {}),
    "lorada, LoRA, 2k, flash": ("lora", "2k", {"settings": [FLASH]}),
    "lorada, LoRA and the map, 2k, flash": ("lora+lmam", "2k", {"settings": [FLASH]}),
    "lorada, LoRA, 2k, flex": ("lora", "2k", {"settings": [FLEX]}),
    "lorada, LoRA and the map, 2k, flex": ("lora+lmam", "2k", {"settings": [FLEX]}),
    "lorada, LoRA, even, compiled": ("lora", "even", {"settings": COMPILED}),
    "lorada, LoRA and the map, even, compiled": ("lora+lmam", "even", {"settings": COMPILED}),
}
TINY = (
    "lorada, LoRA and the map, mixed, packed", "lorada, LoRA and the map, even, full",
    "TRL, LoRA, even",
    "PEFT and the Trainer, LoRA, even",
)  # fmt: skip


def cases(machine: Machine) -> list[str]:
    """All trainings."""
    return machine.pick([*CASES], [*TINY])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Tokens a second, and memory."""
    side, kind, options = CASES[case]
    model = eight_billion(machine)
    data, tokens = _rows(machine, model, kind)
    watch = Watch(machine)
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = {"trl": _trl, "peft": _peft}.get(side, partial(_lorada, side))
    estimated = run(machine, model, (data, *_size(machine, kind)), watch, **options)
    if len(watch.seconds) <= watch.warm:
        raise ValueError(f"only {len(watch.seconds)} steps were taken")
    rates = [tokens / len(watch.seconds) / s for s in watch.seconds[watch.warm :]]
    return {
        "tokens_per_second": rates, "peak_gib": watch.peak(), "loss": watch.loss,
        "steps": len(watch.seconds), "tokens": tokens, "estimated_gib": estimated,
    }  # fmt: skip


class Watch(TrainerCallback):
    """Times every step; the first ones, in which kernels are chosen, are left out."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.warm = machine.pick(WARM, 1)
        self.seconds: list[float] = []
        self.loss: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin with a step."""
        self.machine.wait()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """End it."""
        self.machine.wait()
        self.seconds.append(time.perf_counter() - self.started)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Keep the last loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def peak(self) -> float:
        """GiB that torch's allocator held at most; of the process on a CPU."""
        from lorada.runs.machine import peak_memory

        return peak_memory() / 2**30


def eight_billion(machine: Machine) -> Path:
    """The folder of the model, which the first case makes."""
    find_tests()
    from folders import byte_tokenizer

    folder = machine.folder / "model"
    if not (folder / "tokenizer.json").is_file():
        vocabulary = machine.pick(128256, 512)
        machine.llama(32, vocabulary, rope_theta=500000.0).save_pretrained(folder)
        if machine.device != "cpu":
            torch.cuda.empty_cache()
        byte_tokenizer().save_pretrained(folder)  # the last file says that all are there
    return folder


def _rows(machine: Machine, model: Path, kind: str) -> tuple[Path, int]:
    """A file of rows, and how many tokens they have."""
    longest, batch = _size(machine, kind)
    count = machine.pick(STEPS, 3) * batch
    lengths = [longest] * count
    if kind == "mixed":
        count *= 2  # about as many tokens
        lengths = [SHORTEST + i * (longest - SHORTEST) // (count - 1) for i in range(count)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = training_rows(tokenizer, lengths)
    tokens = sum(len(tokenizer(row["prompt"] + row["response"])["input_ids"]) + 1 for row in rows)
    return write_rows(machine.folder / f"{kind}.jsonl", rows), tokens


def _size(machine: Machine, kind: str) -> tuple[int, int]:
    """Tokens of the longest row of a kind, and rows of a step."""
    longest, batch = machine.pick(SIZES[kind], TINY_SIZE)
    return longest, batch


Data = tuple[Path, int, int]  # a file, the tokens of its longest row, the rows of a step


def _common(machine: Machine, output: Path, batch: int) -> dict[str, Any]:
    on_cpu = machine.device == "cpu"
    return {
        "output_dir": str(output), "num_train_epochs": 1,
        "per_device_train_batch_size": batch, "learning_rate": 1e-4,
        "logging_steps": machine.pick(*LOGGED), "report_to": "none", "save_strategy": "no",
        "use_cpu": on_cpu,
        "bf16": not on_cpu and machine.half is torch.bfloat16,
        "fp16": not on_cpu and machine.half is torch.float16,
        "gradient_checkpointing": True,
    }  # fmt: skip


def _lorada(
    method: str, machine: Machine, model: Path, data: Data, watch: Watch, *,
    packing: bool = False, nf4: bool = False, settings: Sequence[str] = (),
) -> float:  # fmt: skip
    """Train with lorada; what it would take by estimate if nothing is computed again, in GiB."""
    from lorada.training.inputs import prepare
    from lorada.training.load_recipe import load_recipe
    from lorada.training.memory import step_bytes
    from lorada.training.train import train

    file, longest, batch = data

    _needs_bitsandbytes(nf4)
    given = {"method": method, "model": str(model), "data": str(file)}
    pairs = [
        *settings, "num_train_epochs=1", f"per_device_train_batch_size={batch}",
        "learning_rate=1e-4", f"logging_steps={machine.pick(*LOGGED)}", "report_to=[]",
        "save_strategy=no",
        f"max_length={longest}", f"packing={json.dumps(packing)}",
        f"use_cpu={json.dumps(machine.device == 'cpu')}",
        *(f"lora.{name}={value}" for name, value in LORA.items()),
    ]  # fmt: skip
    pairs += ["quantization=nf4"] if nf4 else []
    recipe = load_recipe(None, pairs, {**given, "output": str(machine.folder / "run")})
    train(recipe, overwrite=True, quiet=True, callbacks=[watch])
    prepared = prepare(recipe)
    return step_bytes(prepared.recipe, prepared.config) / 2**30


def _needs_bitsandbytes(nf4: bool) -> None:
    if nf4:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise CannotRunError("no bitsandbytes: pip install 'lorada[bnb]'") from error


def _base(machine: Machine, model: Path, nf4: bool) -> Any:
    _needs_bitsandbytes(nf4)
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=machine.dtype,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=machine.dtype, device_map={"": machine.device},
        quantization_config=bits if nf4 else None,
    )  # fmt: skip


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(**LORA, task_type="CAUSAL_LM", target_modules=TARGETS)


def _trl(
    machine: Machine, model: Path, data: Data, watch: Watch, *, packing: bool = False,
    nf4: bool = False,
) -> None:  # fmt: skip
    """Train with TRL."""
    file, longest, batch = data
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise CannotRunError("no TRL: pip install trl") from error
    from datasets import Dataset

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": row["prompt"], "completion": row["response"]} for row in rows]
    common = _common(machine, machine.folder / "trl", batch)
    trainer = SFTTrainer(
        _base(machine, model, nf4),
        SFTConfig(**common, max_length=longest, packing=packing, disable_tqdm=True),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=_lora(),
        callbacks=[watch],
    )  # fmt: skip
    trainer.train()


def _peft(machine: Machine, model: Path, data: Data, watch: Watch) -> None:
    """Train with PEFT and the Trainer, as their documentation does."""
    file, _, batch = data
    from datasets import Dataset
    from peft import get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(model)

    def encoded(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    base = _base(machine, model, nf4=False)
    base.enable_input_require_grads()
    adapted = get_peft_model(base, _lora())
    trainer = Trainer(
        adapted,
        TrainingArguments(**_common(machine, machine.folder / "peft", batch), disable_tqdm=True),
        train_dataset=Dataset.from_list([encoded(row) for row in rows]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[watch],
    )
    trainer.train()


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each training."""
    return [
        (
            name,
            spread(row["tokens_per_second"], 0),
            f"{row['peak_gib']:.1f}",
            f"{row['estimated_gib']:.1f}" if row["estimated_gib"] else "–",
            "–" if row["loss"] is None else f"{float(row['loss']):.3f}",
            str(row["steps"]),
        )
        for name, row in rows.items()
    ]
