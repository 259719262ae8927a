"""Compares figures with those measured before: which became worse by more than noise."""

from collections.abc import Iterable
from typing import Any

SECONDS = "start"  # the figure that is no ratio, so that another machine has another
LEAST = 0.02  # what may be noise in any case: one turn shows too little of it


def noise_of(figure: dict[str, Any]) -> float:
    """How far a side was from itself: the largest distance from 1 of the ratio or of a turn's."""
    noise = figure["noise"]
    return max(abs(noise[name] - 1) for name in ("ratio", "lowest", "highest"))


def worsened(
    before: dict[str, Any], now: dict[str, Any], figures: Iterable[str], *, same_machine: bool
) -> list[str]:
    """A line for each figure that is higher than before by more than the noise of both.

    Args:
        before: the rows that were stored, by name.
        now: rows that were measured again.
        figures: names of the figures that are compared.
        same_machine: whether figures in seconds may be compared too.
    """
    wanted, found = set(figures), []
    for name, row in now.items():
        for figure, measured in row["figures"].items():
            old = before.get(name, {}).get("figures", {}).get(figure)
            if old is None or figure not in wanted or (figure == SECONDS and not same_machine):
                continue
            noise = max(LEAST, noise_of(old) + noise_of(measured))
            if measured["ratio"] > old["ratio"] * (1 + noise):
                found.append(
                    f"{name}, {figure}: {measured['ratio']:.3f} instead of {old['ratio']:.3f}, "
                    f"and noise explains {noise:.1%}"
                )
    return found
