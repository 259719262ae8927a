"""A job of the queue, what became of it, and what an engine that runs jobs must offer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from lorada.compare.jobs.own_process import Report
from lorada.runs.folder import HeldError, locked

__all__ = ["JOB_FILE", "HeldError", "Job", "JobEngine", "Outcome", "Report", "run_job"]

JOB_FILE = ".lorada.job"  # not the lock of a run, which training takes in the same folder

Status = Literal["done", "kept", "failed", "held", "waiting"]


@dataclass(frozen=True)
class Job:
    """One piece of work in a process of its own, such as a training with its scoring.

    Attributes:
        name: shown in progress lines; no other job of the queue has it.
        work: does whatever is not done yet, so it may be called again after an interrupt. It is
            called as ``work(report=report)`` and must pickle: a function of a module, or a
            ``partial`` of one.
        folder: where it writes; one process at a time works there.
        done: whether the work is done. It is called often and must pickle, too.
        after: names of the jobs that must be done before this one starts.
        reads: files and folders that it reads, which every node of a cluster must have.
    """

    name: str
    work: Callable[..., Any]
    folder: Path
    done: Callable[[], bool]
    after: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: ``done`` now; ``kept``, as it was done before; ``failed``; ``held`` by another
            process; or ``waiting``, as a job that must be done before failed or is held.
        error: the last line of the error of a job that failed or is held; else empty.
    """

    status: Status
    error: str = ""


class JobEngine(Protocol):
    """Runs jobs, several at once if it can.

    Attributes:
        slots: how many jobs it runs at once.
    """

    slots: int

    def start(self, job: Job, report: Report) -> Hashable:
        """Start a job by ``run_job``, with fewer than ``slots`` running; return its handle.

        ``report`` is called in this process with each line that the job reports.

        Raises:
            KeyboardInterrupt: if the user interrupted the command.
        """
        ...

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """Wait until any started job ends; return its handle, and its error if it failed.

        Raises:
            KeyboardInterrupt: if the user interrupted the command.
        """
        ...

    def close(self) -> None:
        """Interrupt the jobs that still run, wait until they have saved, and end the engine."""
        ...


def run_job(job: Job, *, report: Report) -> None:
    """Do the work of a job in this process, unless it is done.

    Raises:
        HeldError: if another process works in its folder.
        Exception: whatever the work raises.
    """
    with locked(job.folder, JOB_FILE):
        if not job.done():
            job.work(report=report)
