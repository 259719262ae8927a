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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from lorada.compare.jobs.job import Job, Outcome, carry_out
from lorada.runs import machine
from lorada.support.outside_packages import allow_packages, allowed_packages
from lorada.support.processes import GPU_SHARE

CLIENT = "ray://"  # begins the address for a machine outside of the cluster
CONNECT_WITHIN = 30.0  # seconds
FOUND_WITHIN = 10.0  # seconds; a network file system may show a new folder late
SAVE_WITHIN = 600.0  # seconds for interrupted jobs to save
MOST_ATTEMPTS = 4  # how often a job is begun, if its process dies
START = (
    "start one by `ray start --head` and give --cluster auto there, or ray://HOST:10001 elsewhere"
)
# Connects in a process that can be ended: where something else listens, or an old cluster is gone,
# Ray tries for minutes, then exits without an error.
TRY_TO_CONNECT = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except BaseException as error:
    sys.exit(str(error).strip().partition("\\n")[0] or type(error).__name__)
"""


@dataclass(frozen=True)
class _Attempt:
    """A job that Ray runs, and how often it was begun with this time."""

    job: Job
    number: int = 1


@dataclass(frozen=True)
class NodeAnswer:
    """What a node says of a job: what became of it, or why no job can run there."""

    outcome: Outcome | None = None
    why_refused: str | None = None


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
        self._running: dict[Any, _Attempt] = {}  # by the task that Ray knows it as
        resources = ray.cluster_resources()
        cpu_slots = int(resources.get("CPU", 0))
        gpu_slots = int(resources.get("GPU", 0) / gpus_per_job)
        self.slots = min(cpu_slots, gpu_slots) if gpu_slots else cpu_slots
        has_too_few_gpus = bool(resources.get("GPU")) and not gpu_slots
        if not self.slots or has_too_few_gpus:
            ray.shutdown()
            raise ValueError(
                f"the Ray cluster at {address} has no room for 1 CPU and {gpus_per_job:g} GPUs"
            )
        # A job that asks for no GPU would see none. Ray begins no task again by itself, as only
        # some errors are worth it, and gives each a process of its own, which ends with it.
        self._task = ray.remote(
            num_cpus=1, num_gpus=gpus_per_job if gpu_slots else 0, max_retries=0, max_calls=1
        )(on_node)
        self._share_of_gpu = min(1.0, gpus_per_job)

    def start(self, job: Job) -> None:
        """Hand a job to Ray."""
        self._start(_Attempt(job))

    def _start(self, attempt: _Attempt) -> None:
        job = attempt.job
        job.folder.mkdir(parents=True, exist_ok=True)  # which its node must see
        named_task = self._task.options(name=job.name)
        task = named_task.remote(
            job, versions(), os.getcwd(), self._share_of_gpu, allowed_packages()
        )
        self._running[task] = attempt

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome]]:
        """As that of ``Workers``.

        Raises:
            ConnectionError: if the cluster is lost.
            ValueError: if a node cannot run jobs.
        """
        try:
            ended, _ = ray.wait(list(self._running), timeout=seconds)
            for task in ended:
                attempt = self._running.pop(task)
                outcome = _outcome_of(task, attempt.number)
                if outcome is None:
                    self._start(_Attempt(attempt.job, attempt.number + 1))
                else:
                    yield attempt.job.name, outcome
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
            tasks = list(self._running)
            if tasks:  # Ray refuses to wait for nothing
                ray.wait(tasks, num_returns=len(tasks), timeout=SAVE_WITHIN)
        self._running.clear()
        ray.shutdown()


def connect(address: str) -> None:
    """Connect this process to a Ray cluster.

    An address of another form, and a cluster that does not answer, are refused. A process of
    its own tries it first, as Ray may try for minutes and then end its process without an error.
    """
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if address != "auto" and (host.startswith("ray:") or not port.isdigit()):
        raise ValueError(f"--cluster {address!r} is not auto, HOST:PORT or ray://HOST:PORT")
    # Ray's own messages are about its processes, not about jobs, and it prints some at any level.
    ray._private.worker._worker_logs_enabled = False
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        command = [sys.executable, "-c", TRY_TO_CONNECT, address]
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


def _outcome_of(task: Any, attempt_number: int) -> Outcome | None:
    """What became of a task that has ended; None if its process died and it may start again.

    A process that has died too often has failed.

    Raises:
        ValueError: for a node that cannot run jobs at all, or not these; it ends the queue.
    """
    try:
        answer: NodeAnswer = ray.get(task)
    except exceptions.TaskCancelledError:
        return Outcome("interrupted")
    except exceptions.RayTaskError as error:  # the node could not even begin
        raise ValueError(f"a node cannot run jobs: {error.cause}") from error
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError,
            exceptions.NodeDiedError) as error:  # fmt: skip
        if attempt_number < MOST_ATTEMPTS:
            return None
        kind = type(error).__name__
        return Outcome("failed", f"its process died {attempt_number} times ({kind})")
    if answer.why_refused is not None:
        raise ValueError(answer.why_refused)
    return answer.outcome


def on_node(
    job: Job,
    command_versions: dict[str, str],
    directory: str,
    share_of_gpu: float,
    packages: Sequence[str] = (),
) -> NodeAnswer:
    """Do a job on this node, or say why none can run here; a task of Ray, in its own process.

    Args:
        job: what to do.
        command_versions: those of the command that hands out the jobs.
        directory: where the command runs; paths of the job may be relative to it.
        share_of_gpu: how much of a GPU's memory the job may plan with.
        packages: of other authors, which the command's user has named.
    """
    # A cluster that a script started in the background ignores interrupts, and so would the job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    paths = [Path(directory), *(Path(directory, path) for path in (job.folder, *job.reads))]
    reason = why_refused(command_versions, paths)  # may wait for a slow file system
    if reason is not None:
        return NodeAnswer(why_refused=reason)
    os.chdir(directory)
    os.environ[GPU_SHARE] = str(share_of_gpu)
    allow_packages(packages)
    return NodeAnswer(outcome=carry_out(job))


def why_refused(command_versions: dict[str, str], paths: Sequence[Path]) -> str | None:
    """Why this node can run no job of a command, in one line; None if it can.

    It waits up to ``FOUND_WITHIN`` seconds for paths that are not there yet.
    """
    node = platform.node()
    node_versions = versions()
    for package, version in command_versions.items():
        if node_versions.get(package) != version:
            return (
                f"node {node} has {package} {node_versions.get(package)}, and this command "
                f"{version}: install the same versions on all nodes"
            )
    give_up_at = time.monotonic() + FOUND_WITHIN
    for path in paths:
        while not path.exists():
            if time.monotonic() > give_up_at:
                return f"node {node} has no {path}: put it on a path that all nodes share, as NFS"
            time.sleep(0.5)
    return None


def versions() -> dict[str, str]:
    """The versions of Python, of packages and of ``lorada`` with a checksum of its source.

    Builds for different accelerators (``2.9.0+cpu``) count as one version.
    """
    package_versions = {
        name: version.partition("+")[0] for name, version in machine.versions().items()
    }
    # The version of lorada stays as it is while its source changes.
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    lorada_version = f"{package_versions['lorada']} (source {digest.hexdigest()[:8]})"
    return {**package_versions, "lorada": lorada_version}
