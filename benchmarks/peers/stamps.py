"""When a process began and ended its work, and how much it was, for who measures it.

``BENCHMARK_STAMPS`` names the file that is written. Times are of ``time.monotonic``, a clock that
all processes of a machine share under Linux. This file imports nothing of lorada: peers use it too.
"""

import functools
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

Stamps = dict[str, Any]


def now() -> float:
    """Seconds of the clock that all processes share."""
    return time.monotonic()


def write(stamps: Stamps, *packages: str) -> None:
    """Leave the stamps, with peak memory and versions of packages, where the measurer looks."""
    versions = {name: version(name) for name in packages}
    found = {**stamps, "memory_mb": peak_memory_mb(), "versions": versions}
    Path(os.environ["BENCHMARK_STAMPS"]).write_text(json.dumps(found), encoding="utf-8")


def peak_memory_mb() -> float:
    """The most megabytes that this process held at once.

    ``ru_maxrss`` would not do: it is never less than what the process that started this one held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def watch_training() -> Stamps:
    """Count and time the steps of every Trainer of transformers in this process.

    Returns:
        What is filled while it trains: ``begin`` of the first step and ``end`` of the last, the
        number of ``steps``, ``read`` tokens with pads, ``labelled`` tokens that are learned, the
        mean ``loss`` of such a token, and how many numbers are ``trained``.
    """
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler

    stamps: Stamps = {"steps": 0, "read": 0, "labelled": 0, "loss": 0.0}
    step, begins, ends = (
        Trainer.training_step,
        CallbackHandler.on_step_begin,
        CallbackHandler.on_step_end,
    )

    @functools.wraps(step)
    def counted_step(self: Any, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        # A decoder never predicts the first token of a sequence.
        labelled = int((inputs["labels"][:, 1:] != -100).sum())
        read = inputs["input_ids"].numel()
        loss = step(self, model, inputs, *more, **options)
        before = stamps["labelled"]
        stamps["labelled"] = before + labelled
        stamps["loss"] = (stamps["loss"] * before + float(loss) * labelled) / (before + labelled)
        stamps["read"] += read
        return loss

    @functools.wraps(begins)
    def stamped_begin(self: Any, *arguments: Any) -> Any:
        if "begin" not in stamps:
            weights = self.model.parameters()
            stamps["trained"] = sum(one.numel() for one in weights if one.requires_grad)
            stamps["begin"] = now()
        return begins(self, *arguments)

    @functools.wraps(ends)
    def stamped_end(self: Any, *arguments: Any) -> Any:
        stamps["end"] = now()
        stamps["steps"] += 1
        return ends(self, *arguments)

    Trainer.training_step = counted_step
    CallbackHandler.on_step_begin, CallbackHandler.on_step_end = stamped_begin, stamped_end
    return stamps
