"""Runs jobs on an engine: in order, going on after a failure, never a finished job again."""

import os
import time
import traceback
from collections.abc import Hashable, Sequence
from graphlib import TopologicalSorter

from lorada.compare.jobs.job import HeldError, Job, JobEngine, Outcome, Report
from lorada.compare.jobs.own_process import KINDS
from lorada.support.duration import duration


def run_queue(jobs: Sequence[Job], engine: JobEngine, *, report: Report) -> dict[str, Outcome]:
    """Run jobs in their order, each after the jobs that it waits for; then close the engine.

    A job that fails does not end the others. A job that another process holds is tried again after
    all others. ``report`` is called with a line when a job starts and ends, and with its own lines.

    Returns:
        What became of each job, by its name.

    Raises:
        KeyboardInterrupt: if the user interrupted; running jobs have saved then.
    """
    try:
        return _Queue(jobs, engine, report).run()
    finally:
        engine.close()


def shard(jobs: Sequence[Job], i: int, n: int) -> list[Job]:
    """The i-th of n parts of a queue's jobs, from 1 on.

    Jobs that wait for each other, directly or through others, are in one part.
    """
    groups = {job.name: [job.name] for job in jobs}  # each job's group, one list for all of it
    for job in jobs:
        for before in job.after:
            mine, other = groups[job.name], groups.get(before, [])
            if other and mine is not other:
                small, large = sorted((mine, other), key=len)
                large += small
                groups.update(dict.fromkeys(small, large))
    parts = list({id(group): group for group in groups.values()}.values())
    chosen = {name for group in parts[i - 1 :: n] for name in group}
    return [job for job in jobs if job.name in chosen]


class _Queue:
    """The state of a queue while it runs."""

    def __init__(self, jobs: Sequence[Job], engine: JobEngine, report: Report) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._engine, self._report = engine, report
        self._outcomes = {job.name: Outcome("kept") for job in jobs if job.done()}
        self._kept = len(self._outcomes)
        self._order = TopologicalSorter(
            {
                name: [before for before in job.after if before not in self._outcomes]
                for name, job in self._jobs.items()
                if name not in self._outcomes
            }
        )
        self._order.prepare()
        self._ready: set[str] = set()  # jobs that wait for no other
        self._labels: dict[str, str] = {}  # how lines about a job begin, from its first start on
        self._running: dict[Hashable, tuple[str, float]] = {}  # the name, and when it started
        self._seconds: list[float] = []  # of each job that was done

    def run(self) -> dict[str, Outcome]:
        """Run all jobs; return what became of each."""
        if self._kept:
            self._report(f"{self._kept} of {len(self._jobs)} jobs were done before")
        self._run_ready()
        self._ready = {name for name, end in self._outcomes.items() if end.status == "held"}
        self._run_ready()
        return {name: self._outcomes.get(name, Outcome("waiting")) for name in self._jobs}

    def _run_ready(self) -> None:
        """Run jobs until none runs and all that are left wait for others."""
        place = {name: number for number, name in enumerate(self._jobs)}
        while True:
            self._ready.update(self._order.get_ready())
            if self._ready and len(self._running) < self._engine.slots:
                name = min(self._ready, key=place.__getitem__)
                self._ready.remove(name)
                self._start(name)
            elif self._running:
                handle, error = self._engine.wait()
                self._end(*self._running.pop(handle), error)
            else:
                return

    def _start(self, name: str) -> None:
        number = self._kept + len(self._labels) + 1
        label = self._labels.setdefault(name, f"[{number}/{len(self._jobs)}] {name}: ")
        job, now = self._jobs[name], time.monotonic()
        try:
            if job.done():
                self._outcomes[name] = Outcome("kept")
                self._order.done(name)
                self._report(f"{label}nothing left to do")
                return
            self._report(f"{label}started")
            handle = self._engine.start(job, lambda line: self._report(label + line))
        except Exception as error:
            self._end(name, now, error)
        else:
            self._running[handle] = name, now

    def _end(self, name: str, began: float, error: BaseException | None) -> None:
        """Record and report what became of a job."""
        if error is None:
            self._outcomes[name] = Outcome("done")
            self._seconds.append(time.monotonic() - began)
            self._order.done(name)
            said = f"done in {duration(self._seconds[-1])}"
        elif not isinstance(error, Exception):  # Ctrl-C reached its process
            raise error
        elif isinstance(error, HeldError):
            self._outcomes[name] = Outcome("held", last_line(error))
            said = f"held: {last_line(error)}"
        else:
            self._outcomes[name] = Outcome("failed", last_line(error))
            said = f"failed: {last_line(error)}"
            if os.environ.get("LORADA_DEBUG"):
                self._report("".join(traceback.format_exception(error)))
        self._report(f"{self._labels[name]}{said}{self._time_left()}")

    def _time_left(self) -> str:
        """How long the jobs that are left take, from those that are done; empty if not known."""
        started = [began for _, began in self._running.values()]
        more = len(self._jobs) - len(self._outcomes) - len(started)
        mean, now = sum(self._seconds) / max(1, len(self._seconds)), time.monotonic()
        left = more * mean + sum(max(0.0, mean - (now - began)) for began in started)
        return f", about {duration(left / self._engine.slots)} left" if left >= 1 else ""


def last_line(error: BaseException) -> str:
    """The last line of an error; its kind is named where the text alone may say nothing."""
    lines = str(error).strip().splitlines() or [""]
    kind = type(error).__name__
    return lines[-1] if isinstance(error, KINDS) and lines[-1] else f"{kind}: {lines[-1]}"
