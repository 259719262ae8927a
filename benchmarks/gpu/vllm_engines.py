"""Part 9: vLLM with the map and without it, one engine a process."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.machine import CannotRunError, Machine, spread

TITLE = "vLLM"
ABOUT = (
    "vLLM with lorada-vllm on SmolLM2-135M's shape with random weights, compiled; prompts of "
    "32 tokens and 48 new ones, so that every step is under the map of 128 tokens "
    "(`packages/lorada-vllm/benchmarks/throughput.py`). One engine a process, so models do "
    "not take turns; the one without the map stands there twice, which shows noise."
)
HEADER = ("model", "batch", "tokens a second", "over `no map`")
SECONDS = 420
ALONE = True
REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "packages" / "lorada-vllm" / "benchmarks" / "throughput.py"
BATCHES = (1, 8, 32)


def cases(machine: Machine) -> list[str]:
    """Models; ``throughput.py`` says what they are."""
    return machine.pick(["base", "no map", "no map again", "map"], ["map"])


def vllm_python() -> str:
    """The Python that has vLLM: ``VLLM_PYTHON``, that of ``make test-vllm``, or this one.

    Raises:
        CannotRunError: if none has it.
    """
    made = REPOSITORY / ".venv-vllm" / "bin" / "python"
    if named := os.environ.get("VLLM_PYTHON"):
        return named
    if made.is_file():
        return str(made)
    if importlib.util.find_spec("vllm") is None:
        raise CannotRunError(
            "no vLLM: name the Python of an environment with vllm, lorada and lorada-vllm in "
            "VLLM_PYTHON"
        )
    return sys.executable


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Tokens a second by batch size and round."""
    output = machine.folder / "vllm.json"
    output.unlink(missing_ok=True)
    tiny = ["--layers", "2", "--dtype", "float32", "--eager"]
    command = [
        vllm_python(), str(SCRIPT), "--output", str(output), "--models", case, "--loads", "short",
        "--rounds", str(machine.pick(7, 1)), "--batches",
        *map(str, machine.pick(BATCHES, (2,))), *machine.pick([], tiny),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=sys.stderr, cwd=REPOSITORY, check=False)
    if done.returncode != 0 or not output.is_file():
        raise ValueError(f"throughput.py ended with {done.returncode}: the log has its last lines")
    found = json.loads(output.read_text(encoding="utf-8"))
    if machine.device == "cuda" and found["vllm"][0] != "vllm":
        raise CannotRunError(f"{found['vllm'][0]} is no build for CUDA")
    rates = {str(one["batch"]): one["tokens_per_s"][case] for one in found["found"]}
    return {"rates": rates, "vllm": found["vllm"], "torch": found["torch"]}


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each model and batch size."""
    found = []
    without = rows.get("no map", {}).get("rates", {})
    for name, row in rows.items():
        for batch, rates in row["rates"].items():
            beside = "–"
            if batch in without and name != "no map":
                ratio = statistics.median(rates) / statistics.median(without[batch])
                beside = f"{ratio:.3f}"
            found.append((name, batch, spread(rates, 1), beside))
    return found
