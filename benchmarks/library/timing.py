"""Times several actions in turns, so that a machine whose speed drifts treats them alike."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

Action = Callable[[int], Any]  # gets the number of the turn
Seconds = dict[str, list[float]]  # by action, one number for each turn


def time_in_turns(actions: dict[str, Action], repetitions: int) -> tuple[Seconds, Seconds]:
    """Run each action once a turn; every turn begins with another action.

    A first turn, number 0, warms up and is not counted.

    Args:
        actions: what to time, by name.
        repetitions: how many turns are counted.

    Returns:
        Seconds of each action, and the processor seconds of all threads together.
    """
    names = list(actions)
    seconds: Seconds = {name: [] for name in names}
    processor: Seconds = {name: [] for name in names}
    gc.collect()
    gc.disable()
    for turn in range(repetitions + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter(), time.process_time()
            actions[name](turn)
            if turn:
                seconds[name].append(time.perf_counter() - started[0])
                processor[name].append(time.process_time() - started[1])
    gc.enable()
    return seconds, processor


def ratio(seconds: Seconds, first: str, second: str) -> dict[str, float]:
    """Divide the median of one action by that of another.

    Returns:
        ``ratio``, with the ``lowest`` and the ``highest`` ratio of a single turn.
    """
    single = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    return {
        "ratio": round(statistics.median(seconds[first]) / statistics.median(seconds[second]), 4),
        "lowest": round(min(single), 4),
        "highest": round(max(single), 4),
    }


def median_ms(seconds: list[float], digits: int = 1) -> float:
    """The median in milliseconds."""
    return round(1000 * statistics.median(seconds), digits)
