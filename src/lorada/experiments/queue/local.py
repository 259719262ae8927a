"""The engines of this machine: one job after another, or several processes at once."""

import os
from collections.abc import Hashable
from contextlib import ExitStack
from multiprocessing.connection import wait

from lorada.experiments import own_process
from lorada.experiments.queue.job import Job, Report, run_job


class OneAtATime:
    """Runs one job after another, each in a process of its own."""

    slots = 1

    def start(self, job: Job, report: Report) -> Hashable:
        """Run a job to its end.

        Raises:
            KeyboardInterrupt: if the user interrupted it; it has saved then.
        """
        self._ended: tuple[Hashable, Exception | None] = job.name, None
        try:
            own_process.call(run_job, job, report=report)
        except Exception as error:
            self._ended = job.name, error
        return job.name

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """The outcome of the job that has ended."""
        return self._ended

    def close(self, interrupt: bool) -> None:
        """Do nothing, as no job is running."""


class Workers:
    """Runs several jobs at once, each in a process of its own with its share of the cores.

    A number of threads that the user has set in ``OMP_NUM_THREADS`` is kept.

    Args:
        count: how many processes.
    """

    def __init__(self, count: int) -> None:
        self.slots = count
        self._threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._running: list[own_process.Process] = []
        self._signals: ExitStack | None = None
        self._interrupted = False

    def start(self, job: Job, report: Report) -> Hashable:
        """Start a job in a new process.

        Raises:
            KeyboardInterrupt: if the user interrupted the command.
        """
        if self._signals is None:
            self._signals = ExitStack()
            self._signals.enter_context(
                own_process.signals_for(self._running, on_interrupt=self._note_interrupt)
            )
        if self._interrupted:
            raise KeyboardInterrupt
        process = own_process.Process(run_job, job, report=report, threads=self._threads)
        self._running.append(process)
        return process

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """Wait until any job ends; return its handle, and its error if it failed.

        Raises:
            KeyboardInterrupt: if the user interrupted the command.
        """
        while not self._interrupted:
            if ended := self._next_end():
                return ended
        raise KeyboardInterrupt

    def close(self, interrupt: bool) -> None:
        """Interrupt the jobs that still run, if asked, and wait until they have saved."""
        for process in self._running:
            process.report = None  # what it reports may be what failed
            if interrupt and not process.interrupted:
                process.interrupt()
        while self._running:
            self._next_end()
        if self._signals is not None:
            self._signals.close()
            self._signals = None

    def _next_end(self) -> tuple[Hashable, BaseException | None] | None:
        """Handle a message of a process; return its outcome if it has ended."""
        ready = wait([process.link for process in self._running])
        process = next(process for process in self._running if process.link in ready)
        answer = process.receive()
        if answer is None:
            return None
        self._running.remove(process)
        process.end()
        return process, answer.error

    def _note_interrupt(self) -> None:
        self._interrupted = True
