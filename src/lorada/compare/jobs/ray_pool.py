"""Runs jobs on a Ray cluster: one task for each job, each in a new process.

Jobs write into a folder that all nodes share. A job whose process or node dies starts again, and
goes on from its last checkpoint. An error of the cluster itself ends the command.
"""

import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from lorada.compare.jobs.job import Job, Outcome, carry_out
from lorada.runs import result
from lorada.support.processes import GPU_SHARE

CLIENT = "ray://"  # begins the address for a machine outside of the cluster
CONNECT_WITHIN = 30.0  # seconds
FOUND_WITHIN = 10.0  # seconds; a network file system may show a new folder late
SAVE_WITHIN = 600.0  # seconds for interrupted jobs to save
TRIES = 4  # how often a job is begun, if its process dies
START = (
    "start one by `ray start --head` and give --cluster auto there, or ray://HOST:10001 elsewhere"
)
# Connects in a process that can be ended: where something else listens, or an old cluster is gone,
# Ray tries for minutes, then exits without an error.
TRY = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except BaseException as error:
    sys.exit(str(error).strip().partition("\\n")[0] or type(error).__name__)
"""


class RayPool:
    """Runs jobs on a Ray cluster, each on one CPU, and on a GPU where the cluster has any.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, ``HOST:PORT`` for one of
            several, or ``ray://HOST:PORT`` from a machine outside of the cluster.
        gpus_per_job: how many GPUs a job takes, where there are any; it may be a part of one.

    Raises:
        ConnectionError: if the cluster cannot be reached.
        ValueError: if it has no CPU for jobs.
    """

    def __init__(self, address: str, gpus_per_job: float = 1.0) -> None:
        connect(address)
        self._address = address
        self._running: dict[Any, tuple[Job, int]] = {}  # by task, with its number of tries
        total = ray.cluster_resources()
        cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0) / gpus_per_job)
        self.slots = min(cpus, gpus or cpus)
        if not self.slots or (total.get("GPU") and not gpus):
            ray.shutdown()
            raise ValueError(
                f"the Ray cluster at {address} has no room for 1 CPU and {gpus_per_job:g} GPUs"
            )
        # A job without a GPU of its own would see none.
        needs = {"num_cpus": 1, "num_gpus": gpus_per_job if gpus else 0}
        self._task = ray.remote(**needs, max_retries=0, max_calls=1)(on_node)
        self._share = min(1.0, gpus_per_job)

    def start(self, job: Job, tries: int = 1) -> None:
        """Hand a job to Ray."""
        job.folder.mkdir(parents=True, exist_ok=True)  # which its node must see
        task = self._task.options(name=job.name).remote(job, versions(), os.getcwd(), self._share)
        self._running[task] = job, tries

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome]]:
        """As that of ``Workers``.

        Raises:
            ConnectionError: if the cluster is lost.
            ValueError: if a node cannot run jobs.
        """
        try:
            ended, _ = ray.wait(list(self._running), timeout=seconds)
            for task in ended:
                job, tries = self._running.pop(task)
                outcome = _outcome(task, tries)
                if outcome is None:
                    self.start(job, tries + 1)
                else:
                    yield job.name, outcome
        except (exceptions.RayError, ConnectionError) as error:
            self._running.clear()
            why = str(error).partition("\n")[0]
            raise ConnectionError(
                f"the Ray cluster at {self._address} is lost ({why}): what is stored "
                "stays; start the cluster, then run the command again with --resume"
            ) from error

    def close(self) -> None:
        """Interrupt the jobs that still run, wait until they have saved, and leave the cluster."""
        with suppress(exceptions.RayError, ConnectionError):
            for task in self._running:
                ray.cancel(task)
            if left := list(self._running):
                ray.wait(left, num_returns=len(left), timeout=SAVE_WITHIN)
        self._running.clear()
        ray.shutdown()


def connect(address: str) -> None:
    """Connect this process to a Ray cluster."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if address != "auto" and (host.startswith("ray:") or not port.isdigit()):
        raise ValueError(f"--cluster {address!r} is not auto, HOST:PORT or ray://HOST:PORT")
    # Ray's own messages are about its processes, not about jobs, and it prints some at any level.
    ray._private.worker._worker_logs_enabled = False
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        command = [sys.executable, "-c", TRY, address]
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=CONNECT_WITHIN, check=False
        )
        if tried.returncode:
            raise OSError(tried.stderr.strip().rpartition("\n")[2])
        ray.init(address, log_to_driver=False, logging_level="CRITICAL")
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        reason = str(error).strip().partition("\n")[0]  # Ray's texts have many lines
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"no answer within {CONNECT_WITHIN:.0f} s"
        raise ConnectionError(f"no Ray cluster at {address} ({reason}): {START}") from error


def _outcome(task: Any, tries: int) -> Outcome | None:
    """What became of a task that has ended; None if its process died and it may start again."""
    try:
        refusal, outcome = ray.get(task)
    except exceptions.TaskCancelledError:
        return Outcome("interrupted")
    except exceptions.RayTaskError as error:  # the node could not even begin
        raise ValueError(f"a node cannot run jobs: {error.cause}") from error
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError,
            exceptions.NodeDiedError) as error:  # fmt: skip
        died = f"its process died {tries} times ({type(error).__name__})"
        return None if tries < TRIES else Outcome("failed", died)
    if refusal is not None:
        raise ValueError(refusal)
    found: Outcome = outcome
    return found


def on_node(
    job: Job, here: dict[str, str], directory: str, share: float
) -> tuple[str | None, Outcome | None]:
    """Do a job on this node, from ``directory`` on: why it cannot run jobs, or what became of it.

    ``here`` are the versions of the command; ``share`` is that of a GPU's memory for the job.
    """
    # A cluster that a script started in the background ignores interrupts, and so would the job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    paths = [Path(directory), *(Path(directory, path) for path in (job.folder, *job.reads))]
    if (wrong := refusal(here, paths)) is not None:
        return wrong, None
    os.chdir(directory)
    os.environ[GPU_SHARE] = str(share)
    return None, carry_out(job)


def refusal(here: dict[str, str], paths: Sequence[Path]) -> str | None:
    """Why this node can run no job of a command, in one line; None if it can."""
    there, node, end = versions(), platform.node(), time.monotonic() + FOUND_WITHIN
    for package, version in here.items():
        if there.get(package) != version:
            return (
                f"node {node} has {package} {there.get(package)}, and this command {version}: "
                "install the same versions on all nodes"
            )
    for path in paths:
        while not path.exists():
            if time.monotonic() > end:
                return f"node {node} has no {path}: put it on a path that all nodes share, as NFS"
            time.sleep(0.5)
    return None


def versions() -> dict[str, str]:
    """The versions of Python, of packages and of ``lorada`` with a checksum of its source.

    Builds for different accelerators (``2.9.0+cpu``) count as one version.
    """
    found = {name: version.partition("+")[0] for name, version in result.versions().items()}
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {**found, "lorada": f"{found['lorada']} (source {digest.hexdigest()[:8]})"}
