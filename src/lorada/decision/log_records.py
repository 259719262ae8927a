"""What a log of another tool holds, whichever tool wrote it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LM_EVAL = "lm-eval"
INSPECT = "Inspect"
PROMPTFOO = "promptfoo"


@dataclass(frozen=True)
class LogRow:
    """An answer to a row, and its scores."""

    row: str  # by which rows of one task are matched
    scores: dict[str, float]  # metric → score
    repeat: int = 0  # which of several answers of one model to the row
    content: str = ""  # the same wherever a row of this name is the same; empty if not known
    error: str = ""  # why there is no answer


@dataclass(frozen=True)
class Log:
    """The answers of a model to the rows of one task."""

    tool: str  # LM_EVAL, INSPECT or PROMPTFOO
    path: Path
    folders: tuple[str, ...]  # names that the user gave: of folders, or of the file
    model: tuple[str, ...]  # parts of the name of what answered, as the log has it
    task: str
    rows: tuple[LogRow, ...]
    lower_is_better: dict[str, bool] = field(default_factory=dict)  # of metrics that say so
    remarks: dict[str, str] = field(default_factory=dict)  # metric → what a user should know of it
    unfinished: str = ""  # why the log lacks rows; empty if the tool came to its end

    @property
    def metrics(self) -> set[str]:
        """The metrics of any of its rows."""
        return {metric for row in self.rows for metric in row.scores}


def as_number(value: Any) -> float | None:
    """A score as a number; None for what is none, such as a list or NaN."""
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: for a file that is not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the decoding or of the JSON
        raise broken(path, error) from error


def broken(path: Path, error: Exception | str) -> ValueError:
    """An error for a log that cannot be read."""
    return ValueError(f"{path} is broken ({error}): copy or write it again")


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a model's name or path."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
