"""Simulates the queue: how long jobs of known durations take on so many slots."""

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorada.experiments.queue.job import Job, Report
from lorada.experiments.queue.queue import run_queue


class _SimulatedEngine:
    """An engine whose jobs only take time, which is read off its own clock."""

    def __init__(self, seconds: Mapping[str, float], slots: int) -> None:
        self.slots, self.now = slots, 0.0
        self._seconds = seconds
        self._running: list[tuple[float, str]] = []  # when each ends

    def start(self, job: Job, report: Report) -> str:
        heapq.heappush(self._running, (self.now + self._seconds[job.name], job.name))
        return job.name

    def wait(self) -> tuple[str, None]:
        self.now, name = heapq.heappop(self._running)
        return name, None

    def close(self) -> None:
        pass


def makespan(seconds: Mapping[str, float], after: Mapping[str, Sequence[str]], slots: int) -> float:
    """Seconds from the start of the queue to the end of its last job.

    Args:
        seconds: how long each job takes, in the queue's order.
        after: the jobs that a job waits for; a job that waits for none may be left out.
        slots: how many jobs run at once.
    """
    clock = _SimulatedEngine(seconds, slots)
    jobs = [Job(name, print, Path(), bool, tuple(after.get(name, ()))) for name in seconds]
    run_queue(jobs, clock, report=lambda line: None)
    return clock.now
