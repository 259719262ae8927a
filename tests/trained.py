"""Runs that tests share, each trained at its first use."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

# Run → model, method, rows, and settings of its own.
Runs = Mapping[str, tuple[str, str, str, list[str]]]


def train_once(place: Path, name: str, runs: Runs, settings: Sequence[str]) -> Path:
    """The folder of a run in ``place``, where its model and its rows are."""
    model, method, rows, own = runs[name]
    output = place / name
    if not output.is_dir():
        options = {
            "method": method, "model": str(place / model), "output": str(output),
            "data": str(place / f"{rows}.jsonl"),
        }  # fmt: skip
        train(load_recipe(None, [*settings, *own], options), quiet=True)
    return output
