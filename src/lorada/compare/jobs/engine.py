"""The engine of this machine, and the choice between it and a Ray cluster."""

import os
from collections.abc import Hashable

from lorada.compare.jobs import own_process
from lorada.compare.jobs.job import Job, JobEngine, Report, run_job
from lorada.support.errors import needs_extra


class Workers:
    """Runs jobs on this machine, each in a process of its own.

    Several at once share the cores. A number of threads that the user has set in
    ``OMP_NUM_THREADS`` is kept.

    Args:
        count: how many at once.
    """

    def __init__(self, count: int = 1) -> None:
        self.slots = count
        cores = len(os.sched_getaffinity(0))
        self._threads = None if count == 1 else max(1, cores // count)
        self._processes = own_process.Processes()

    def start(self, job: Job, report: Report) -> Hashable:
        """Start a job in a new process."""
        return self._processes.start(run_job, job, report=report, threads=self._threads)

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """Wait until any job ends; return its handle, and its error if it failed."""
        process, answer = self._processes.wait()
        return process, answer.error

    def close(self) -> None:
        """Interrupt the jobs that still run, and wait until they have saved."""
        self._processes.close()


def engine_named(workers: int = 1, cluster: str | None = None) -> JobEngine:
    """The engine for the options of a command.

    Args:
        workers: processes at once on this machine.
        cluster: address of a Ray cluster, such as ``auto`` or ``ray://HOST:PORT``; None for this
            machine.

    Raises:
        ImportError: for a cluster where Ray is not installed.
        OSError: if the cluster cannot be reached.
    """
    if cluster is None:
        return Workers(workers)
    with needs_extra("cluster"):
        from lorada.compare.jobs.ray_cluster import RayEngine
    return RayEngine(cluster)
