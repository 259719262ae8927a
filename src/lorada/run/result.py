"""``result.json``: what a run was, on what it ran, and what came out. Reports read only this."""

import json
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorada.files import write_whole

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
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        # What getrusage says under Linux may be that of the process which started this one.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
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
    wanted = ("labels", "form", "metrics", "history")
    if not isinstance(result, dict) or not all(name in result for name in wanted):
        raise ValueError(f"{path} is not the result of a run: it lacks {', '.join(wanted)}")
    return result


def write_result(run: Path, result: dict[str, Any]) -> None:
    """Write the result of a run, whole or not at all."""
    write_whole(run / RESULT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
