"""Losses on rows that a model should still do, as files keep them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import FiniteFloat

from lorada.compare.stored_plan import STORED, record_in
from lorada.runs.folder import KEPT_FILE, SCALED_FILE
from lorada.support.files import json_text, write_atomic

Losses = dict[str, list[FiniteFloat | None]]  # of each row, by the name of the rows


@dataclass(frozen=True)
class KeptLosses:
    """The losses of a model on the rows to keep, in nats a token; None for a row without one.

    ``groups`` has what the rows of each name share with others, where rows have groups.
    """

    __pydantic_config__ = STORED

    losses: Losses = field(default_factory=dict)
    groups: dict[str, list[str | None]] = field(default_factory=dict)
    reason: str = ""  # why there are none

    def save(self, folder: Path) -> None:
        """Write ``kept.json``."""
        write_atomic(folder / KEPT_FILE, json_text(asdict(self)) + "\n")


def saved_losses(folder: Path) -> KeptLosses | None:
    """The losses that a folder has; None before they are measured.

    Raises:
        ValueError: if the file is damaged.
    """
    return record_in(folder / KEPT_FILE, KeptLosses)


@dataclass(frozen=True)
class LossesAtScale:
    """The losses on the rows to keep at one scale of the adapter."""

    __pydantic_config__ = STORED

    scale: float
    kept: KeptLosses


@dataclass(frozen=True)
class ScaledRun:
    """What a run loses at smaller scales, as ``scaled.json`` has it; or why it has none."""

    __pydantic_config__ = STORED

    at: list[LossesAtScale] = field(default_factory=list)
    reason: str = ""


def saved_scales(run: Path) -> ScaledRun | None:
    """What a run loses at smaller scales; None if it is not scored there.

    Raises:
        ValueError: if the file is damaged.
    """
    return record_in(run / SCALED_FILE, ScaledRun)
