"""Runs jobs on this machine, several at once, each in a process of its own.

A process never gives back all the memory that it allocated, and its peak memory never falls, so
each job gets its own. On a CPU all are forks of one process that has imported torch, Python's fork
server. An accelerator cannot be used in a fork of a process that has looked at it, and some
libraries look when they are imported (PEFT imports bitsandbytes, which asks for the card's
generation). So beside one, each process starts afresh, with its cards in its environment.

Ctrl-C is passed on, once for each time that it is pressed: a training saves a checkpoint at the
first, and ends at once at the second. The processes end with the command, however that ends.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from lorada.compare.jobs.job import Job, Outcome, carry_out
from lorada.support.processes import GPU_SHARE

# Variables of the environment: which cards a process sees, and how many threads it computes with.
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
# What the fork server imports, so that a job does not have to.
IMPORTED = ["__main__", "lorada.compare.trainings"]


@dataclass(frozen=True)
class _RunningJob:
    """A job and its process."""

    job: Job
    process: Any  # of the kind that the context starts: a fork, or a new interpreter
    receiver: Connection  # through which the process sends what became of the job


class Workers:
    """Runs jobs on this machine.

    Args:
        count: how many at once; None for as many as the cards take, and one without a card.
        gpus_per_job: how many cards a job sees; of less than 1, one card is shared by several.

    Attributes:
        slots: how many jobs it runs at once.
        preloaded: modules that are imported once for all jobs.
    """

    def __init__(self, count: int | None = 1, gpus_per_job: float = 1.0) -> None:
        self._cards = cards_of_slots(visible_cards(), gpus_per_job)
        self._share_of_card = min(1.0, gpus_per_job)
        self.slots = count or max(1, len(self._cards))
        self._threads: int | None = None  # of each job; None for as many as torch takes by default
        if self.slots > 1:  # jobs that run at once share the cores
            self._threads = max(1, _core_count() // self.slots)
        self._forks = not self._cards and not _has_accelerator()
        self._context: Any = get_context("spawn")
        self.preloaded: list[str] = []
        if self._forks:
            self._context = get_context("forkserver")
            self.preloaded = IMPORTED
        self._running: dict[int, _RunningJob] = {}  # by slot

    def start(self, job: Job) -> None:
        """Start a job in a new process."""
        slot = min(set(range(self.slots)) - self._running.keys())
        changes = self._environment_of(slot)
        receiver, sender = self._context.Pipe(duplex=False)
        arguments = job, sender, {**os.environ, **changes}
        process = self._context.Process(target=_work, args=arguments, name=job.name)
        with _silent_stderr():
            if self._forks:
                forkserver.set_forkserver_preload(self.preloaded)
                forkserver.ensure_running()
                process.start()
            else:  # a new interpreter imports what the job needs before it calls `_work`
                with _in_environment(changes):
                    process.start()
        sender.close()  # so that the process alone holds it, and reading ends when that ends
        self._running[slot] = _RunningJob(job, process, receiver)

    def _environment_of(self, slot: int) -> dict[str, str]:
        """What a job's environment in a slot has beside that of this command: cards and threads.

        A job that shares its card with others is told which part of the memory it may plan with.
        """
        environment: dict[str, str] = {}
        if self._threads and THREADS not in os.environ:
            environment[THREADS] = str(self._threads)
        if self._cards:
            cards = self._cards_of(slot)
            sharing = [other for other in range(self.slots) if self._cards_of(other) == cards]
            environment[VISIBLE] = ",".join(cards)
            environment[GPU_SHARE] = str(min(self._share_of_card, 1 / len(sharing)))
        return environment

    def _cards_of(self, slot: int) -> list[str]:
        """The cards of a slot; where there are more slots than cards, several have the same."""
        return self._cards[slot % len(self._cards)]

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome]]:
        """Wait until a job ends, so many seconds at most; the names of those that have ended."""
        wait([running.process.sentinel for running in self._running.values()], seconds)
        for slot, running in list(self._running.items()):
            if running.process.exitcode is not None:
                del self._running[slot]
                yield running.job.name, _outcome_of(running)

    def close(self) -> None:
        """Interrupt the jobs that still run, and wait until they have saved."""
        while self._running:
            for running in self._running.values():
                with suppress(ProcessLookupError):
                    os.kill(running.process.pid, signal.SIGINT)
            with suppress(KeyboardInterrupt):  # pressed again, so all are interrupted again
                while self._running:
                    list(self.wait(1.0))


def _core_count() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Leave out what libraries print on the error stream, in processes that start meanwhile."""
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _in_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Have other variables in a ``with`` block, which new processes inherit."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outcome_of(running: _RunningJob) -> Outcome:
    """What became of a job whose process has ended."""
    with running.receiver as receiver:
        try:
            outcome: Outcome = receiver.recv()
        except (EOFError, OSError):  # nothing was sent: the process ended in the middle of the job
            how = _how_it_ended(running.process.exitcode)
            return Outcome("failed", f"the process of this run {how}")
    return outcome


def _how_it_ended(exit_code: int) -> str:
    """What ended a process, in words; the code is below 0 for a signal."""
    if exit_code == -signal.SIGKILL:
        return "was killed, as the system does when memory runs out"
    if exit_code < 0:
        return f"was ended by signal {-exit_code}"
    return f"ended by itself, with code {exit_code}"


def _work(job: Job, sender: Connection, environment: Mapping[str, str]) -> None:
    """What a process does: the job, with the environment that the command has by now."""
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the command, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_command, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore", FutureWarning)  # of what will change in other libraries
    if THREADS in os.environ and "torch" in sys.modules:  # it read the variable when it was loaded
        sys.modules["torch"].set_num_threads(int(os.environ[THREADS]))
    sender.send(carry_out(job))


def _end_with_command() -> None:
    """Kill this process when the command ends."""
    command = parent_process()
    assert command is not None
    command.join()
    os.kill(os.getpid(), signal.SIGKILL)


def visible_cards() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    visible = os.environ.get(VISIBLE)
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in visible.split(",")]
    return [name for name in names if name not in ("", "-1")]


def cards_of_slots(cards: Sequence[str], gpus_per_job: float) -> list[list[str]]:
    """The cards of each job of those that run at once; none without a card."""
    if not cards:
        return []
    if gpus_per_job < 1:
        return [[card] for card in cards] * round(1 / gpus_per_job)
    size = int(gpus_per_job)
    if size > len(cards):
        raise ValueError(f"--gpus-per-job {size} needs {size} GPUs, and there are {len(cards)}")
    whole_jobs = len(cards) // size  # cards that are left over stay free
    return [list(cards[job * size : (job + 1) * size]) for job in range(whole_jobs)]
