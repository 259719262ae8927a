"""Runs jobs in a pool: in order, going on after a failure, never a finished job again."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

from rich.text import Text

from lorada.compare.jobs.job import Job, Outcome, last_line, last_report
from lorada.support.in_words import duration
from lorada.support.progress import plain_console

Report = Callable[[str], None]
Pick = Callable[[Sequence[Job], Collection[str]], Job | None]
Ended = Callable[[Job, Outcome], None]
NOTHING_LEFT = "nothing left to do"  # as another process has done it
KNOWN = 0.02  # of a training that is done, before the time left is told
MINUTE = 60.0  # seconds between two lines on a running job, where there is no terminal


def first_of(ready: Sequence[Job], running: Collection[str]) -> Job | None:
    """The first job that is ready."""
    return ready[0] if ready else None


def run_queue(
    jobs: Sequence[Job], pool: Any, *, report: Report, pick: Pick = first_of,
    ended: Ended = lambda job, outcome: None,
) -> dict[str, Outcome]:  # fmt: skip
    """Run jobs, each after the job that it waits for.

    A job that fails does not end the others. A job that another process holds is tried again after
    all others, as long as any has ended in between. So of several processes that run the same jobs
    the last one finds none that is held.

    Args:
        jobs: in their order.
        pool: where they run: ``Workers`` or ``RayPool``; it is closed at the end.
        report: called with a line when a job starts and ends. On a terminal a line at its end shows
            how far the running jobs are; elsewhere each of them is reported once a minute.
        pick: chooses the next of the jobs that are ready, beside the names of those that run; None
            to begin no other.
        ended: called with each job that was done before or has ended, and what became of it.

    Returns:
        What became of each job, by its name.

    Raises:
        KeyboardInterrupt: if the user interrupted; running jobs have saved then.
    """
    console = plain_console(stderr=True)
    try:
        with console.status("") if console.is_terminal else nullcontext() as line:
            return _Queue(jobs, pool, report, pick, ended, line).run()
    finally:
        pool.close()


class _Queue:
    """The state of a queue while it runs."""

    def __init__(
        self, jobs: Sequence[Job], pool: Any, report: Report, pick: Pick, ended: Ended, line: Any
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._pool, self._report, self._pick, self._line = pool, report, pick, line
        self._ended, self._outcomes = ended, dict[str, Outcome]()
        for job in jobs:
            if job.done():
                self._set(job, Outcome("kept"))
        self._kept = len(self._outcomes)
        self._labels: dict[str, str] = {}  # how lines about a job begin, from its first start on
        self._running: dict[str, float] = {}  # name → when it started
        self._began = self._said = time.monotonic()

    def run(self) -> dict[str, Outcome]:
        """Run all jobs; return what became of each."""
        if self._kept:
            self._report(f"{self._kept} of {len(self._jobs)} jobs were done before")
        held, before = list[str](), -1
        while len(self._outcomes) - len(held) > before:  # at first, and after more has ended
            for name in held:
                del self._outcomes[name]
            before = len(self._outcomes)
            self._run_ready()
            held = [name for name, end in self._outcomes.items() if end.status == "held"]
            if not held:
                break
        return {name: self._outcomes.get(name, Outcome("waiting")) for name in self._jobs}

    def _set(self, job: Job, outcome: Outcome) -> None:
        self._outcomes[job.name] = outcome
        self._ended(job, outcome)

    def _run_ready(self) -> None:
        """Run jobs until none runs and all that are left wait for others or are not picked."""
        changed = True  # picking may read all that is stored, so it waits for an end
        while True:
            free = changed and len(self._running) < self._pool.slots
            job = self._pick(self._ready(), self._running) if free else None
            if job is not None:
                self._start(job)
            elif self._running:
                changed = False
                for name, outcome in self._pool.wait(1.0):
                    self._end(name, outcome)
                    changed = True
                self._show()
            else:
                return

    def _ready(self) -> list[Job]:
        over = {name for name, end in self._outcomes.items() if end.status in ("done", "kept")}
        return [
            job for name, job in self._jobs.items()
            if name not in self._outcomes and name not in self._running
            and (job.after in over or job.after not in self._jobs)
        ]  # fmt: skip

    def _start(self, job: Job) -> None:
        number = self._kept + len(self._labels) + 1
        label = self._labels.setdefault(job.name, f"[{number}/{len(self._jobs)}] {job.name}: ")
        if job.done():  # by another process, in the meantime
            self._set(job, Outcome("kept"))
            self._report(f"{label}{NOTHING_LEFT}")
            return
        self._report(f"{label}started")
        self._running[job.name] = time.monotonic()
        try:
            self._pool.start(job)
        except OSError as error:  # no more processes
            self._end(job.name, Outcome("failed", last_line(error)))

    def _end(self, name: str, outcome: Outcome) -> None:
        """Record and report what became of a job."""
        if outcome.status == "interrupted":  # Ctrl-C reached its process
            raise KeyboardInterrupt
        seconds = time.monotonic() - self._running.pop(name)
        self._set(self._jobs[name], outcome)
        said = {
            "done": f"done in {duration(seconds)}", "kept": NOTHING_LEFT,
            "held": "another process works on it",
        }.get(outcome.status, f"failed: {outcome.error}")  # fmt: skip
        self._report(f"{self._labels[name]}{said}{self._time_left()}")

    def _show(self) -> None:
        """Show how far the running jobs are, if that is due."""
        running = [
            self._labels[name] + (last_report(self._jobs[name])[0] or "loading")
            for name in self._running
        ]
        if self._line is not None:
            done = f"{len(self._outcomes)} of {len(self._jobs)} done{self._time_left()}"
            self._line.update(Text("\n".join([done, *running])))
        elif time.monotonic() - self._said > MINUTE:
            self._said = time.monotonic()
            for line in running:
                self._report(line + self._time_left())

    def _time_left(self) -> str:
        """How long the jobs that are left take if they go on like this; empty if unknown."""
        did = left = 0.0
        for name, job in self._jobs.items():
            outcome = self._outcomes.get(name, Outcome("waiting"))
            share = (
                last_report(job)[1] if name in self._running else float(outcome.status == "done")
            )
            if outcome.status in ("done", "waiting"):  # others take no more time
                did += share * job.trainings
                left += (1 - share) * job.trainings
        # At first most of the time went into loading.
        seconds = left * (time.monotonic() - self._began) / did if did > KNOWN else 0.0
        return f", about {duration(seconds)} left" if seconds >= 1 else ""
