"""Sides that take turns, so that a machine whose speed drifts treats them alike."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

Turn = Callable[[int], Any]


def in_turn(sides: dict[str, Turn], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each side; every turn begins with another one. One turn more is a warm-up."""
    names, seconds = list(sides), {name: [] for name in sides}
    gc.collect()
    gc.disable()
    for turn in range(repetitions + 1):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in order:
            started = time.perf_counter()
            sides[name](turn)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    gc.enable()
    return seconds


def ratio(seconds: dict[str, list[float]], first: str, second: str) -> dict[str, float]:
    """How much longer ``first`` takes."""
    pairs = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    return {
        "ratio": round(statistics.median(seconds[first]) / statistics.median(seconds[second]), 4),
        "lowest": round(min(pairs), 4),
        "highest": round(max(pairs), 4),
    }
