"""``result.json``: what a run was, on what it ran, and what came out. Reports read only this."""

import json
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch

from lorada.files import json_text, write_whole
from lorada.tasks.rows import Form

RESULT_FILE = "result.json"
PACKAGES = ("lorada", "torch", "transformers", "peft", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The processor, cores, memory (GiB) and accelerator of this machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes; of the accelerator where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_result(run: Path) -> dict[str, Any]:
    """The result of a run.

    Raises:
        ValueError: if there is none or it is not JSON.
    """
    path = run / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{run} has no {RESULT_FILE}: train it first, or finish it with --resume")
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    wanted = {"labels": list, "form": str, "metrics": dict, "history": list}
    for name, kind in wanted.items():
        if not isinstance(result, dict) or name not in result:
            raise ValueError(f"{path} is not the result of a run: it lacks {', '.join(wanted)}")
        if not isinstance(result[name], kind):
            raise ValueError(f"{path} is damaged: its {name} is {str(result[name])[:60]!r}")
    if result["form"] not in get_args(Form):
        raise ValueError(f"{path} is damaged: there are no rows of the form {result['form']!r}")
    if not all(isinstance(label, str) for label in result["labels"]):
        raise ValueError(f"{path} is damaged: not all of its labels are words")
    return result


def write_result(run: Path, result: dict[str, Any]) -> None:
    """Write the result of a run, whole or not at all."""
    write_whole(run / RESULT_FILE, json_text(result) + "\n")
