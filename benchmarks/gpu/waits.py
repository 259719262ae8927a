"""Part 3: where the host waits for the GPU, by torch's own report of it."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu.machine import CannotRunError, Machine, find_tests
from transformers import TrainerCallback

TITLE = "Where the host waits"
ABOUT = (
    "Counted by `torch.cuda.set_sync_debug_mode` in the third step of a training with LoRaDA-LA "
    "and `dtype=mixed`, and in eight tokens after a prompt."
)
HEADER = ("what", "waits", "where")
SECONDS = 240
ALONE = True
WAITS = "synchronizing CUDA operation"  # in torch's warning
TRAININGS = {
    "a step of padded rows": [],
    "a step of packed rows": ["packing=true"],
    "a step with recomputed activations": ["activation_checkpointing=full"],
}
NEW = 8
TOKENS = f"{NEW} tokens of generate, padded prompts"


def cases(machine: Machine) -> list[str]:
    """Trainings and generated tokens."""
    return machine.pick([*TRAININGS, TOKENS], ["a step of packed rows", TOKENS])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """How often the host waits, by the line of code."""
    if machine.device not in ("cuda", "cpu"):
        raise CannotRunError(f"torch reports no waits for {machine.device}")
    waits = _of_tokens(machine) if case == TOKENS else _of_training(machine, TRAININGS[case])
    return {"waits": waits}


@contextmanager
def reported(device: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Inside, every wait is counted; what it gives returns the counts by file and line."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: dict(_places(found))
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def _places(found: list[warnings.WarningMessage]) -> Counter[str]:
    """Waits by package, file and line."""
    places = Counter[str]()
    for one in found:
        if WAITS in str(one.message):
            path = Path(one.filename)
            names = {"lorada", "transformers", "peft", "accelerate", "torch", "bitsandbytes"}
            start = max((i for i, part in enumerate(path.parts) if part in names), default=-2)
            places[f"{Path(*path.parts[start:]).as_posix()}:{one.lineno}"] += 1
    return places


class InThirdStep(TrainerCallback):
    """Counts the waits of one step, after two that make what is made once."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.waits: dict[str, int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to count."""
        if state.global_step == 2:
            self.context = reported(self.device)
            self.read = self.context.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read the counts."""
        if state.global_step == 3:
            self.waits = self.read()
            self.context.__exit__(None, None, None)


def _of_training(machine: Machine, settings: list[str]) -> dict[str, int]:
    find_tests()
    from folders import llama_folder, rows_file

    from lorada.training.load_recipe import load_recipe
    from lorada.training.train import train

    place = machine.folder / "waits"
    place.mkdir(parents=True, exist_ok=True)
    model, data = llama_folder(place / "llama"), rows_file(place / "rows.jsonl")
    given = {"method": "lorada_la", "model": str(model), "data": str(data)}
    quick = [
        "max_steps=4", "dtype=mixed", "report_to=[]", "save_strategy=no", "max_length=32",
        "per_device_train_batch_size=4", f"use_cpu={str(machine.device == 'cpu').lower()}",
    ]  # fmt: skip
    counted = InThirdStep(machine.device)
    recipe = load_recipe(None, [*quick, *settings], {**given, "output": str(place / "run")})
    train(recipe, overwrite=True, quiet=True, callbacks=[counted])
    if counted.waits is None:
        raise ValueError("the training had no third step")
    return counted.waits


def _of_tokens(machine: Machine) -> dict[str, int]:
    from peft import get_peft_model

    from lorada import build_method

    base: Any = machine.llama(4, 512).eval()
    config = build_method("lorada_la", base.config).config
    assert config is not None
    model: Any = get_peft_model(base, config).to(machine.device).eval()
    ids = torch.randint(3, 512, (4, 16), device=machine.device)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0

    def generate() -> None:
        model.generate(
            input_ids=ids, attention_mask=mask, min_new_tokens=NEW, max_new_tokens=NEW,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    generate()
    with reported(machine.device) as read:
        generate()
        return read()


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each case."""
    return [
        (
            name,
            str(sum(row["waits"].values())),
            ", ".join(f"`{at}` ×{n}" for at, n in sorted(row["waits"].items())) or "–",
        )
        for name, row in rows.items()
    ]
