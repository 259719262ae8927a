"""Runs that tests share, each trained at its first use, and what tests of runs begin with."""

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from lorada.runs.recipe import Recipe
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

# Run → model, method, rows, and settings of its own.
Runs = Mapping[str, tuple[str, str, str, list[str]]]
# Of what a run saves at its end, all but its checkpoints and its recipe.
SAVED = ("result.json", "adapter", "model")
QUICK = ["per_device_train_batch_size=4", "report_to=[]", "max_length=32", "logging_steps=1"]


def run_recipe(
    settings: Sequence[str], place: Path, output: Path, *pairs: str, model: str = "llama",
    rows: str | None = None, **options: str | None,
) -> Recipe:  # fmt: skip
    """A recipe with a model and rows of ``place``, the rows by the name of the model."""
    given = {"model": str(place / model), "data": str(place / f"{rows or model}.jsonl")}
    return load_recipe(None, [*settings, *pairs], {**given, "output": str(output), **options})


def train_once(place: Path, name: str, runs: Runs, settings: Sequence[str]) -> Path:
    """The folder of a run in ``place``, where its model and its rows are."""
    model, method, rows, own = runs[name]
    output = place / name
    if not output.is_dir():
        asked = run_recipe(settings, place, output, *own, model=model, rows=rows, method=method)
        train(asked, quiet=True)
    return output


def failing_for(method: str, error: Exception, train: Callable[..., Any]) -> Callable[..., Any]:
    """``train``, which ends in an error for one method."""

    def carry_out(recipe: Recipe, **options: Any) -> Any:
        if recipe.method == method:
            raise error
        return train(recipe, **options)

    return carry_out


def before_its_end(run: Path, target: Path) -> Path:
    """A copy of a run as it was before its end, with only the earliest checkpoint that it kept."""
    copy = shutil.copytree(run, target)
    later = sorted(copy.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[1:]
    for path in (*later, *(copy / name for name in SAVED)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return copy


class PressCtrlC(TrainerCallback):
    """Ctrl-C after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same tensors by the same names, bit for bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
