"""What a run ran on: versions of packages, the machine, and how much memory the process took."""

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from lorada.support.version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    package_versions = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "lorada": __version__, **package_versions}


def hardware() -> dict[str, str | float | None]:
    """The processor, cores, memory (GiB) and accelerator of this machine."""
    import torch

    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    accelerator = None
    if torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "accelerator": accelerator,
    }


def _cpu_name() -> str:
    """The model of the processor as Linux names it; elsewhere what Python knows of it."""
    for line in _lines_of("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines_of(path: str) -> list[str]:
    """The lines of a file of Linux; none on another system."""
    file = Path(path)
    if not file.is_file():
        return []
    return file.read_text().splitlines()


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes; of the accelerator, if there is one."""
    import torch

    if torch.cuda.is_available():
        allocated = torch.cuda.max_memory_allocated()
        if allocated:  # 0 of a training on the processor
            return int(allocated)
    for line in _lines_of("/proc/self/status"):
        # Under Linux, getrusage may give the peak of the process that started this one.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # in bytes there, elsewhere in KiB
        return peak
    return peak * 1024
