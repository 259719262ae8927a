"""The order in which jobs start: as they are listed, but each after the jobs that it waits for."""

import heapq
from collections.abc import Mapping, Sequence

from lorada.support.errors import unknown_name


class Order:
    """Says which job may start next.

    Args:
        after: each job's name, in their order, with the names of the jobs that it waits for.

    Raises:
        ValueError: for a name that is not there, or jobs that wait for each other.
    """

    def __init__(self, after: Mapping[str, Sequence[str]]) -> None:
        self._names = list(after)
        self._place = {name: place for place, name in enumerate(after)}
        self._missing = {name: set(before) for name, before in after.items()}
        self._waiting: dict[str, list[str]] = {name: [] for name in after}
        for name, before in self._missing.items():
            for other in before:
                if other not in self._waiting:
                    raise unknown_name(f"job before {name}", other, after)
                self._waiting[other].append(name)
        self._refuse_circle()
        self._ready = [self._place[name] for name, before in self._missing.items() if not before]

    def next(self) -> str | None:
        """Take the first job that may start; None if all that are left wait for others."""
        return self._names[heapq.heappop(self._ready)] if self._ready else None

    def done(self, name: str) -> None:
        """Let the jobs start that waited for this one alone."""
        for other in self._waiting[name]:
            if name in self._missing[other]:
                self._missing[other].remove(name)
                if not self._missing[other]:
                    self.again(other)

    def again(self, name: str) -> None:
        """Let a job start that was taken before."""
        heapq.heappush(self._ready, self._place[name])

    def _refuse_circle(self) -> None:
        left = {name: len(before) for name, before in self._missing.items()}
        free = [name for name, count in left.items() if not count]
        for name in free:
            for other in self._waiting[name]:
                left[other] -= 1
                if not left[other]:
                    free.append(other)
        if len(free) < len(left):
            circle = sorted(set(left) - set(free))
            raise ValueError(f"these jobs wait for each other: {', '.join(circle)}")
