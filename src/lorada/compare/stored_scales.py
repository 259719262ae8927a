"""What a run loses at smaller scales of its adapter, as ``scaled.json`` keeps it."""

from dataclasses import dataclass, field
from pathlib import Path

from lorada.compare.kept import KeptLosses
from lorada.compare.stored_plan import STORED, record_in
from lorada.runs.folder import SCALED_FILE


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
