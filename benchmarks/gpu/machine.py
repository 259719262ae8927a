"""The device that ``run.py`` measures on, and what all its parts share."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from library.timing import Action
from transformers import LlamaConfig, LlamaForCausalLM

TESTS = Path(__file__).parents[2] / "tests"
HELPERS = TESTS / "helpers"
# Llama-3.1-8B and Llama-3.2-1B without their layers and vocabulary, which parts choose.
SHAPE_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
SHAPE_1B = {**SHAPE_8B, "hidden_size": 2048, "intermediate_size": 8192}
TINY_SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


class CannotRunError(Exception):
    """A case that this machine cannot run, with the reason in one line."""


@dataclass(frozen=True)
class Machine:
    """Where a case runs.

    Attributes:
        device: ``cuda``, another accelerator of torch, or ``cpu``.
        tiny: whether models and numbers of turns are as small as can be, to try the script.
        folder: for models and logs, which later cases find there.
    """

    device: str
    tiny: bool
    folder: Path

    def pick(self, whole: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else whole

    @property
    def half(self) -> torch.dtype:
        """The 16 bits that the device computes in: bf16, or fp16 where that is emulated (T4)."""
        if self.device == "cpu":
            return torch.bfloat16
        module = getattr(torch, torch.device(self.device).type)
        supported = module.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else torch.float16

    @property
    def dtype(self) -> torch.dtype:
        """What a base computes in: 16 bits, fp32 on a CPU."""
        return torch.float32 if self.device == "cpu" else self.half

    def autocast(self) -> torch.autocast:
        """What a step runs under, as a training with ``dtype=auto`` has it on this device."""
        on_cpu = self.device == "cpu"
        return torch.autocast(torch.device(self.device).type, self.half, enabled=not on_cpu)

    def wait(self) -> None:
        """Wait until the device has done everything, so that a timer counts it."""
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def timed(self, action: Action) -> Action:
        """An action that ends when the device has done it."""

        def run(turn: int) -> None:
            action(turn)
            self.wait()

        return run

    def llama(self, layers: int, vocabulary: int, **changes: Any) -> LlamaForCausalLM:
        """A random model of the 8B shape, but for changes, with so many layers, on the device."""
        shape = self.pick({**SHAPE_8B, **changes}, {**changes, **TINY_SHAPE})
        config = LlamaConfig(
            num_hidden_layers=self.pick(layers, 2), vocab_size=vocabulary, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, **shape,
        )  # fmt: skip
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)


def find_tests() -> None:
    """Let models and cases of the tests be imported."""
    for folder in (TESTS, HELPERS):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def spread(values: Sequence[float], digits: int) -> str:
    """The median of some numbers, with the lowest, the highest and how many there are."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f} in {len(values)})"


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """The ratio of two actions in each turn."""
    return [a / b for a, b in zip(first, second, strict=True)]


Measure = Callable[[Machine, str], dict[str, Any]]
