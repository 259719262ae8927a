"""Reads and writes ``result.json``: what a run was, what it ran on, and its scores."""

import json
import logging
import os
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from lorada.support.error_messages import first_problem
from lorada.support.files import as_typed, json_lines, json_text, write_atomic
from lorada.support.row_sources import HEADED, Form
from lorada.support.version import __version__

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _StoredMetrics(BaseModel):
    """Metrics on some rows by name: numbers, and ``unfound`` in words."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | str | None]

    n: int  # how many rows
    cut: int = 0  # how many answers were cut
    # The commonest answer of the training rows, and what it scores, given to every row.
    commonest: dict[str, str | float | list[str] | None] | None = None


class _StoredRecipe(BaseModel):
    """Fields of a run's recipe that a report reads."""

    model_config = ConfigDict(extra="allow", strict=True)

    training: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    trust_remote_code: bool = False


class _Result(BaseModel):
    """Fields of a stored result that every use of a run reads; others are not checked."""

    model_config = ConfigDict(extra="allow", strict=True)

    labels: list[str]
    form: Form
    pairs: bool = False  # of texts, in every row that it learned
    commonest_answer: str | float | list[str] | None = None  # of its training rows
    history: list[dict[str, float | None]]
    metrics: dict[str, _StoredMetrics]
    unparsable: dict[str, float] | None = None
    hardware: dict[str, str | float | None] | None = None
    recipe: _StoredRecipe | None = None
    forgetting: dict[str, Any] | None = None
    peak_memory_bytes: Cost | None = None
    seconds_per_step: Cost | None = None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "lorada": __version__, **found}


def hardware() -> dict[str, Any]:
    """The processor, cores, memory (GiB) and accelerator of this machine."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes; of the accelerator, if there is one."""
    import torch

    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return int(peak)  # 0 of a training on the processor
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        # Under Linux, getrusage may give the peak of the process that started this one.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_result(run: Path) -> dict[str, Any]:
    """The result of a run."""
    path = run / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{run} has no {RESULT_FILE}: train it first, or finish it with --resume")
    return result_in(path)


def result_in(path: Path) -> dict[str, Any]:
    """The result in a file."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        where, wrong = first_problem(error)
        raise ValueError(f"{path} is not the result of a run: {where or 'it'}: {wrong}") from error
    return result


def refuse_no_text(run: Path, form: str, labels: Sequence[str]) -> None:
    """Refuse a run with a head, which writes no text, where text is asked for."""
    if form in HEADED:
        what = f"a classifier of {', '.join(labels)}" if labels else "a scorer"
        ask = as_typed("lorada", "predict", run, "--text", "TEXT")
        raise ValueError(f"{run} is {what} and writes no text: ask it with {ask}")


def write_result(run: Path, result: dict[str, Any]) -> None:
    """Write the result of a run, completely or not at all."""
    write_atomic(run / RESULT_FILE, json_text(result) + "\n")


def keep_scores(
    run: Path, found: dict[str, dict[str, Any]], unparsable: dict[str, float] | None = None
) -> None:
    """Add scores to the result of a run, by name; if they cannot be written, only warn.

    ``unparsable`` is the percent of answers that name no option, by the same names.
    """
    result = read_result(run)
    result["metrics"].update(found)
    if unparsable:
        result["unparsable"] = {**(result.get("unparsable") or {}), **unparsable}
    _keep(run / RESULT_FILE, json_text(result) + "\n", "the scores")


def keep_forgetting(run: Path, found: dict[str, Any]) -> None:
    """Put the losses of ``forgetting`` into the result of a run; if that fails, only warn."""
    text = json_text({**read_result(run), "forgetting": found}) + "\n"
    _keep(run / RESULT_FILE, text, "the losses on the neutral text")


def _keep(path: Path, text: str, what: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        reason = error.strerror or error
        logger.warning("%s could not be kept in %s: %s", what, path, reason)


PREDICTIONS_FILE = "predictions.jsonl"


class Line(BaseModel):
    """One row of one scoring.

    ``--with-text`` adds ``text`` (what was asked) and ``right`` (the right answer), except to
    windows of plain text, which have no right answer.

    Attributes:
        rows: the name of the rows, as among the metrics in ``result.json``.
        row: the row's number in its file, from 1; of plain text the number of the window.
        answer: what the model answered: a text, a class, a list of labels, the index of a
            candidate, a number; null for a window.
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
    answer: str | int | float | list[str] | None
    score: float | None
    loss: float | None
    metrics: dict[str, FiniteFloat | None] = {}


def read_predictions(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's predictions, in the file's order; none if the run was never scored."""
    path = run / PREDICTIONS_FILE
    if not path.is_file():
        return []
    found = []
    # Bytes, because the splitlines() of a text also splits at U+2028, which a JSON string may hold.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(Line.model_validate_json(line).model_dump(exclude_unset=True))
        except ValidationError as error:
            where, wrong = first_problem(error, depth=1)
            raise ValueError(
                f"{path} line {number} is damaged ({where or 'it'}: {wrong}): delete the file and "
                "score the run again"
            ) from error
    return found


def write_predictions(run: Path, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Put ``lines`` in place of those of the rows ``name``, wholly; if that fails, only warn."""
    by_rows: dict[str, list[dict[str, Any]]] = {}
    for line in read_predictions(run):
        by_rows.setdefault(line["rows"], []).append(line)
    by_rows[name] = [{"rows": name, **line} for line in lines]
    _keep(run / PREDICTIONS_FILE, json_lines(chain(*by_rows.values())), "the answers")
