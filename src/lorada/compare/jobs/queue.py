"""Runs jobs in a pool: in order, going on after a failure, never a finished job again."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Protocol

from rich.status import Status
from rich.text import Text

from lorada.compare.jobs.job import Job, Outcome, last_line, progress_of
from lorada.support.in_words import duration
from lorada.support.progress import plain_console

Report = Callable[[str], None]
Pick = Callable[[Sequence[Job], Collection[str]], Job | None]
Ended = Callable[[Job, Outcome], None]
NOTHING_LEFT = "nothing left to do"  # as another process has done it
KNOWN = 0.02  # of a training that is done, before the time left is told
MINUTE = 60.0  # seconds between two lines on a running job, where there is no terminal


class Pool(Protocol):
    """Where jobs run: ``Workers`` on this machine, ``RayPool`` on a cluster."""

    slots: int  # how many jobs run at once

    def start(self, job: Job) -> None:
        """Start a job, in a process of its own."""

    def wait(self, seconds: float) -> Iterable[tuple[str, Outcome]]:
        """Wait until a job ends, so many seconds at most; the names of those that have ended."""

    def close(self) -> None:
        """Interrupt the jobs that still run, and wait until they have saved."""


def first_of(ready: Sequence[Job], running: Collection[str]) -> Job | None:
    """The first job that is ready."""
    return ready[0] if ready else None


def run_queue(
    jobs: Sequence[Job], pool: Pool, *, report: Report, pick: Pick = first_of,
    ended: Ended = lambda job, outcome: None,
) -> dict[str, Outcome]:  # fmt: skip
    """Run jobs, each after the job that it waits for.

    A job that fails does not end the others. A job that another process holds is tried again after
    all others, as long as any has ended in between. So of several processes that run the same jobs
    the last one finds none that is held.

    Args:
        jobs: in their order.
        pool: where they run; it is closed at the end.
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
        with console.status("") if console.is_terminal else nullcontext() as status:
            return _Queue(jobs, pool, report, pick, ended, status).run()
    finally:
        pool.close()


class _Queue:
    """The state of a queue while it runs."""

    def __init__(
        self,
        jobs: Sequence[Job],
        pool: Pool,
        report: Report,
        pick: Pick,
        ended: Ended,
        status: Status | None,  # the lines at the end of a terminal; None where there is none
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._pool = pool
        self._report = report
        self._pick = pick
        self._ended = ended
        self._status = status
        self._outcomes: dict[str, Outcome] = {}  # of the jobs that have ended
        for job in jobs:
            if job.done():
                self._keep_outcome(job, Outcome("kept"))
        self._done_before = len(self._outcomes)
        self._labels: dict[str, str] = {}  # how lines about a job begin, from its first start on
        self._started_at: dict[str, float] = {}  # of the jobs that run, by the clock
        self._began_at = time.monotonic()
        self._last_report_at = self._began_at  # on running jobs

    def run(self) -> dict[str, Outcome]:
        """Run all jobs; return what became of each.

        Raises ``KeyboardInterrupt`` if the user interrupted.
        """
        if self._done_before:
            self._report(f"{self._done_before} of {len(self._jobs)} jobs were done before")
        while True:
            # Held jobs have been removed below, so these have ended for good.
            ended_before_pass = len(self._outcomes)
            self._run_ready()
            held = [name for name, outcome in self._outcomes.items() if outcome.status == "held"]
            ended_after_pass = len(self._outcomes) - len(held)
            # A pass in which nothing has ended would only be repeated, and wait for the other
            # process for ever.
            pass_ended_jobs = ended_after_pass > ended_before_pass
            if not held or not pass_ended_jobs:
                break
            # Time has passed since another process held them, so they are tried again.
            for name in held:
                del self._outcomes[name]
        return {name: self._outcome_of(name) for name in self._jobs}

    def _outcome_of(self, name: str) -> Outcome:
        """What became of a job; it waits if it has not ended."""
        return self._outcomes.get(name, Outcome("waiting"))

    def _keep_outcome(self, job: Job, outcome: Outcome) -> None:
        self._outcomes[job.name] = outcome
        self._ended(job, outcome)

    def _run_ready(self) -> None:
        """Run jobs until none runs and all that are left wait for others or are not picked."""
        # Picking may read all that is stored, which is slow. So once nothing was picked, it is
        # asked again only after a job has ended.
        may_pick = True
        while True:
            job = None
            if may_pick and len(self._started_at) < self._pool.slots:
                job = self._pick(self._ready_jobs(), self._started_at)
            if job is not None:
                self._start(job)
                continue
            if not self._started_at:
                return
            may_pick = False
            for name, outcome in self._pool.wait(1.0):
                self._end(name, outcome)
                may_pick = True
            self._show_progress()

    def _ready_jobs(self) -> list[Job]:
        """The jobs that may start: not begun yet, and done is what they wait for."""
        ready = []
        for name, job in self._jobs.items():
            if name in self._outcomes or name in self._started_at:
                continue
            # A job that is not of this queue would never end here, so none waits for it.
            comes_after_job_here = job.after in self._jobs
            if comes_after_job_here and not self._is_done(job.after):
                continue
            ready.append(job)
        return ready

    def _is_done(self, name: str) -> bool:
        """Whether a job was done now or before; one that failed or is held is not."""
        return self._outcome_of(name).status in ("done", "kept")

    def _start(self, job: Job) -> None:
        """Start a job in the pool and report it, unless another process has done it already."""
        number = self._done_before + len(self._labels) + 1
        label = self._labels.setdefault(job.name, f"[{number}/{len(self._jobs)}] {job.name}: ")
        if job.done():  # by another process, in the meantime
            self._keep_outcome(job, Outcome("kept"))
            self._report(f"{label}{NOTHING_LEFT}")
            return
        self._report(f"{label}started")
        self._started_at[job.name] = time.monotonic()
        try:
            self._pool.start(job)
        except OSError as error:  # the system starts no more processes; other jobs go on
            self._end(job.name, Outcome("failed", last_line(error)))

    def _end(self, name: str, outcome: Outcome) -> None:
        """Record and report what became of a job.

        Raises ``KeyboardInterrupt`` if Ctrl-C reached the job's process, so that the queue ends
        too.
        """
        if outcome.status == "interrupted":  # Ctrl-C reached its process
            raise KeyboardInterrupt
        seconds = time.monotonic() - self._started_at.pop(name)
        self._keep_outcome(self._jobs[name], outcome)
        if outcome.status == "done":
            words = f"done in {duration(seconds)}"
        elif outcome.status == "kept":
            words = NOTHING_LEFT
        elif outcome.status == "held":
            words = "another process works on it"
        else:
            words = f"failed: {outcome.error}"
        self._report(f"{self._labels[name]}{words}{self._time_left()}")

    def _show_progress(self) -> None:
        """Show how far the running jobs are, if that is due."""
        lines = []
        for name in self._started_at:
            reported = progress_of(self._jobs[name]).line or "loading"
            lines.append(f"{self._labels[name]}{reported}")
        if self._status is not None:
            done = f"{len(self._outcomes)} of {len(self._jobs)} done{self._time_left()}"
            self._status.update(Text("\n".join([done, *lines])))
        elif time.monotonic() - self._last_report_at > MINUTE:
            self._last_report_at = time.monotonic()
            for line in lines:
                self._report(f"{line}{self._time_left()}")

    def _time_left(self) -> str:
        """How long the jobs that are left take if they go on like this; empty if unknown.

        Jobs are counted in trainings (``Job.trainings``), and of a running one the share that is
        done: seconds left = seconds so far × trainings left / trainings done.
        """
        trainings_done = trainings_left = 0.0
        for name, job in self._jobs.items():
            status = self._outcome_of(name).status
            if status not in ("done", "waiting"):  # done before, or failed: they take no more time
                continue
            share_done = 1.0 if status == "done" else 0.0
            if name in self._started_at:
                share_done = progress_of(job).share
            trainings_done += share_done * job.trainings
            trainings_left += (1 - share_done) * job.trainings
        if trainings_done <= KNOWN:  # at first most of the time went into loading
            return ""
        seconds = trainings_left * (time.monotonic() - self._began_at) / trainings_done
        return f", about {duration(seconds)} left" if seconds >= 1 else ""
