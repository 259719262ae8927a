"""Simulates the queue: how long jobs of known durations take on so many slots."""

import heapq
from collections.abc import Mapping, Sequence

from lorada.experiments.queue.order import Order


def makespan(seconds: Mapping[str, float], after: Mapping[str, Sequence[str]], slots: int) -> float:
    """Seconds from the start of the queue to the end of its last job.

    Args:
        seconds: how long each job takes, in the queue's order.
        after: the jobs that a job waits for; a job that waits for none may be left out.
        slots: how many jobs run at once.

    Raises:
        ValueError: for a job to wait for that is not there, or jobs that wait for each other.
    """
    order = Order({name: after.get(name, ()) for name in seconds})
    running: list[tuple[float, str]] = []  # when each ends
    now = 0.0
    while True:
        while len(running) < slots and (name := order.next()) is not None:
            heapq.heappush(running, (now + seconds[name], name))
        if not running:
            return now
        now, name = heapq.heappop(running)
        order.done(name)
