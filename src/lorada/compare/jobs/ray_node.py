"""What runs on the nodes of a Ray cluster, which need not have this package.

Ray sends these functions by value, so they import ``lorada`` only once its version is known.
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("lorada", "torch", "transformers", "peft")
RETRIES = 3  # how often a job starts again after its process died
FOUND_WITHIN = 10.0  # seconds; a network file system may show a new file late
ARRIVE_WITHIN = 10.0  # seconds for the last line of a job


class Lines:
    """An actor of the cluster that holds the lines of jobs until the command fetches them."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._begun: dict[str, int] = {}

    def begin(self, task: str) -> int:
        """Count how often a task has begun; Ray keeps its id when it starts it again."""
        self._begun[task] = self._begun.get(task, 0) + 1
        return self._begun[task]

    def add(self, job: str, text: str) -> None:
        """Add a line of a job."""
        self._lines.append((job, text))

    def take(self) -> list[tuple[str, str]]:
        """The lines since the last call."""
        taken, self._lines = self._lines, []
        return taken


def versions() -> dict[str, str]:
    """The versions of Python, of packages and of ``lorada`` with a checksum of its source.

    Builds for different accelerators (``2.9.0+cpu``) count as one version.
    """
    found = {"python": platform.python_version(), **dict.fromkeys(PACKAGES, "none")}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package).partition("+")[0]
    spec, digest = importlib.util.find_spec("lorada"), hashlib.sha256()
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
        found["lorada"] += f" (source {digest.hexdigest()[:8]})"
    return found


def sees(path: str) -> bool:
    """Whether this node finds a file, after some seconds at most."""
    end = time.monotonic() + FOUND_WITHIN
    while not Path(path).exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def refusal(here: dict[str, str], probe: str) -> str | None:
    """Why this node can run no job of a command, in one line; None if it can.

    Args:
        here: the versions of the command.
        probe: a file that the command has written into its output folder.
    """
    there, node = versions(), platform.node()
    for package, version in here.items():
        if there[package] != version:
            return (
                f"node {node} has {package} {there[package]}, and this command {version}: "
                "install the same versions on all nodes"
            )
    if not sees(probe):
        return (
            f"node {node} does not see {Path(probe).parent} of this command: choose an --output "
            "on a path that all nodes share, such as NFS"
        )
    return None


def carry_out(here: dict[str, str], probe: str, directory: str, pickled: bytes, lines: Any) -> None:
    """Do a job on this node, in a process that ends with it.

    Args:
        here: the versions of the command.
        probe: a file that the command has written into its output folder.
        directory: the command's working directory, where relative paths start.
        pickled: the job.
        lines: the actor that takes its lines.

    Raises:
        ValueError: if this node, which may have joined late, cannot run jobs or lacks a path.
        MemoryError: if the process of the job was ended too often.
    """
    # A cluster that a script started in the background ignores interrupts, and so would the job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wrong := refusal(here, probe):
        raise ValueError(wrong)
    import ray

    from lorada.compare.jobs.job import run_job
    from lorada.compare.jobs.own_process import LogSender

    job, node = ray.cloudpickle.loads(pickled), platform.node()
    try:
        os.chdir(directory)
    except OSError as error:
        if not job.folder.is_absolute():
            raise ValueError(f"node {node} has no {directory}: give absolute paths") from error
    for path in job.reads:
        if not path.exists():
            raise ValueError(f"node {node} has no {path}: put it on a path that all nodes share")
    sent: list[Any] = []

    def report(text: str) -> None:
        sent[:] = [lines.add.remote(job.name, text)]

    def report_record(record: logging.LogRecord) -> None:
        report(f"{record.levelname.lower()}: {record.getMessage()}")

    logging.getLogger().addHandler(LogSender(report_record, logging.WARNING))
    try:
        begun, task = 1, ray.get_runtime_context().get_task_id()
        with suppress(ray.exceptions.RayError):
            begun = ray.get(lines.begin.remote(task), timeout=ARRIVE_WITHIN)
        if begun > RETRIES + 1:  # Ray has no limit where it ends a task for memory
            raise MemoryError(f"its process was ended {RETRIES + 1} times, at last on node {node}")
        if begun > 1:
            report(f"its process ended; started again on node {node}")
        run_job(job, report=report)
    finally:
        with suppress(Exception):  # lines may be lost, jobs not
            ray.get(sent, timeout=ARRIVE_WITHIN)
