"""``lorada predict``: a run's answers to rows without labels, in the order of the rows.

Rows are answered in parts of ``PART`` batches. A file of answers is written to ``FILE.part``, part
by part, so that a run that was killed goes on; a part is answered in the same batches then, so the
file is the same. Only the whole file gets its name.
"""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorada.inference.evaluate import Answered, answer_rows
from lorada.inference.load import Run
from lorada.runs.data.rows import Rows, typed_label
from lorada.runs.folder.folder import TRAINED_FILE
from lorada.runs.folder.lock import HeldError, locked
from lorada.runs.recipe import RECIPE_FILE
from lorada.support.errors import full_disk_in_one_line
from lorada.support.files import json_lines, json_text, refuse_there, write_atomic

logger = logging.getLogger(__name__)

PART = 32  # batches; within them, rows of similar length are answered together
WEIGHTS = "adapter/*", "model/*", TRAINED_FILE  # of a run's folder
Answer = dict[str, Any]


@torch.no_grad()
def predict(run: Run, rows: Rows, done: int = 0) -> Iterator[list[Answer]]:
    """Answer rows, part by part.

    Args:
        run: the run.
        rows: what it is to answer, as ``rows_to_answer`` makes them.
        done: how many rows were answered before, in whole parts.

    Yields:
        The answers of a part: ``row``, its number from 1; ``label`` and ``probs`` by class,
        ``score``, the ``answer`` that was written, or the index of the candidate as ``answer``.

    Raises:
        ValueError: for a row that the model cannot read.
    """
    size, count = PART * run.recipe.eval_batch_size, len(rows.rows)
    parts = [range(start, min(start + size, count)) for start in range(done, count, size)]
    found: dict[int, Answer] = {}
    left = iter(parts)
    part = next(left, range(0))
    for index, answer in answer_rows(run, rows, parts) if parts else ():
        found[index] = _answer(rows, answer, run.label_type)
        if len(found) == len(part):
            yield [{"row": rows.number(i), **found[i]} for i in part]
            found, part = {}, next(left, range(0))


def _answer(rows: Rows, found: Answered, label_type: str) -> Answer:
    if found.probs is not None:
        label = typed_label(found.value, label_type)
        return {"label": label, "probs": dict(zip(rows.labels, found.probs, strict=True))}
    return {"score" if rows.form == "score" else "answer": found.value}


def predict_to(run: Run, rows: Rows, output: Path, *, overwrite: bool = False) -> int:
    """Answer rows into a file, JSON Lines or CSV by its ending.

    Returns:
        How many rows an earlier call had answered, which are not answered again.

    Raises:
        ValueError: as ``predict``, if another process writes the file, or if it is there already
            and not to be replaced.
        OSError: if the disk is full.
    """
    try:
        with locked(output.parent, f".{output.name}.lock"):
            refuse_there(output, overwrite=overwrite)
            return _predict_to(run, rows, output)
    except HeldError:
        raise ValueError(
            f"another process writes {output}: wait for it, or choose another --output"
        ) from None


def _predict_to(run: Run, rows: Rows, output: Path) -> int:
    """``predict_to`` without its checks."""
    part, key = output.with_name(f"{output.name}.part"), _key(run, rows)
    answers = _answered_before(part, key, PART * run.recipe.eval_batch_size)
    before = len(answers)
    with full_disk_in_one_line(output, "Free space, then run the command again"):
        write_atomic(part, json_lines([{"of": key}, *answers]))
        with part.open("a", encoding="utf-8") as file:
            for found in predict(run, rows, before):
                file.write(json_lines(found))
                file.flush()
                os.fsync(file.fileno())
                answers += found
        text = _csv if output.suffix.lower() == ".csv" else json_lines
        write_atomic(output, text(answers))
    part.unlink()
    return before


def _key(run: Run, rows: Rows) -> str:
    """What the answers depend on, in short: the rows, the run's recipe and its weights."""
    weights = [p for name in WEIGHTS for p in sorted(run.folder.glob(name))]
    files = [
        (p.relative_to(run.folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
        for p in weights
    ]
    recipe = (run.folder / RECIPE_FILE).read_text(encoding="utf-8")
    text = json_text([rows.fingerprint, rows.form, rows.labels, PART, recipe, files])
    return hashlib.sha256(text.encode()).hexdigest()


def _answered_before(part: Path, key: str, size: int) -> list[Answer]:
    """The answers of whole parts in an unfinished file; none if it is of other rows or a run."""
    lines = part.read_bytes().splitlines(keepends=True) if part.is_file() else []
    if lines[:1] != [json_lines([{"of": key}]).encode()]:
        if lines:
            logger.warning("%s is of other rows, settings or weights, and is begun anew", part)
        return []
    answers = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    return answers[: len(answers) - len(answers) % size]


def _csv(answers: list[Answer]) -> str:
    """Answers as CSV, with a column for the probability of each class."""
    flat = [
        {k: v for k, v in answer.items() if k != "probs"}
        | {f"prob_{label}": share for label, share in answer.get("probs", {}).items()}
        for answer in answers
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
