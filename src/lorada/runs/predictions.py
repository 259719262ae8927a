"""Reads and writes ``predictions.jsonl``: a run's answer to each row that it was scored on.

A line is one row of one scoring; ``Line`` says what its fields are.
"""

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lorada.support.files import json_lines, write_atomic

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.jsonl"


class Line(BaseModel):
    """One row of one scoring.

    ``--with-text`` adds ``text`` (what was asked) and ``right`` (the right answer), except to
    windows of plain text, which have no right answer.

    Attributes:
        rows: the name of the rows, as among the metrics in ``result.json``.
        row: the row's number in its file, from 1; of plain text the number of the window.
        answer: what the model answered: a text, a class, the index of a candidate, a number; null
            for a window.
        score: the metric that the rows are scored by, higher for the better one: a loss or an error
            is minus itself; null if it is not a finite number.
        loss: the row's loss in nats (a number's: its squared error); null if none is measured.
        metrics: further, what ``row_metrics`` says of the row.
        group: further, what the row shares with others, if its file says so.
        cut: further, true for a text that was cut at the most tokens of an answer.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    rows: str
    row: int
    answer: str | int | float | None
    score: float | None
    loss: float | None


def read_predictions(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's predictions, in the file's order; none if the run was never scored."""
    path = run / PREDICTIONS_FILE
    if not path.is_file():
        return []
    found = []
    # Bytes, because the splitlines() of a text also splits at U+2028, which a JSON string may hold.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(Line.model_validate_json(line).model_dump())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][:1])) or "it"
            raise ValueError(
                f"{path} line {number} is damaged ({where}: {first['msg'].lower()}): delete the "
                "file and score the run again"
            ) from error
    return found


def write_predictions(run: Path, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Put ``lines`` in place of those of the rows ``name``, wholly; if that fails, only warn."""
    by_rows: dict[str, list[dict[str, Any]]] = {}
    for line in read_predictions(run):
        by_rows.setdefault(line["rows"], []).append(line)
    by_rows[name] = [{"rows": name, **line} for line in lines]
    try:
        write_atomic(run / PREDICTIONS_FILE, json_lines(chain(*by_rows.values())))
    except OSError as error:
        reason = error.strerror or error
        logger.warning("the answers could not be kept in %s: %s", run / PREDICTIONS_FILE, reason)
