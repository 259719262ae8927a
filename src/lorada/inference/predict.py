"""``lorada predict``: a run's answers to rows without labels, in the order of the rows.

Rows are answered in parts of ``PART`` batches. A file of answers is written to
``FILE.lorada-part``, part by part, so that a run that was killed goes on; a part is answered in the
same batches then, so the file is the same. Only the whole file gets its name, and in it each answer
stands beside all columns of its row.
"""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lorada.data.task_rows import Rows
from lorada.inference.evaluate import Answered, answer_rows
from lorada.inference.generate import say_cut
from lorada.inference.load import Run
from lorada.runs.recipe import RECIPE_FILE
from lorada.support.error_messages import SCORING, full_disk_in_one_line, memory_remedy
from lorada.support.files import json_lines, json_text, refuse_there, write_atomic
from lorada.support.row_sources import Row, files_of

logger = logging.getLogger(__name__)

PART = 32  # batches; within them, rows of similar length are answered together
WEIGHTS = "adapter/*", "model/*"  # of a run's folder
Answer = dict[str, Any]


@torch.no_grad()
def predict(run: Run, rows: Rows, done: int = 0) -> Iterator[list[Answer]]:
    """Answer rows, as ``rows_to_answer`` makes them, but for the first ``done``, part by part.

    Yields:
        The answers of a part: ``row``, its number from 1; ``label`` or ``labels``, and ``probs`` by
        name; ``score``; the ``answer`` that was written and whether it was ``cut`` at the most
        tokens of one; or the index of the candidate as ``answer``, its text as ``candidate``.
    """
    size, count = PART * run.recipe.eval_batch_size, len(rows.rows)
    parts = [range(start, min(start + size, count)) for start in range(done, count, size)]
    each = answer_rows(run, rows, parts)
    for part in parts:
        with memory_remedy(SCORING):
            found = dict(islice(each, len(part)))
        yield [{"row": rows.number(i), **as_answer(rows, i, found[i])} for i in part]


def as_answer(rows: Rows, index: int, found: Answered) -> Answer:
    """What is said of the answer to a row; its fields are those that ``predict`` names."""
    if found.probs is not None:
        return {rows.form: found.value, "probs": dict(zip(rows.labels, found.probs, strict=True))}
    if rows.form == "choice":
        candidate = rows.rows[index]["candidates"][found.value]
        return {"answer": found.value, "candidate": candidate}
    known = {} if found.cut is None else {"cut": found.cut}
    return {"score" if rows.form == "score" else "answer": found.value, **known}


def beside(given: list[Row], answers: list[Answer]) -> list[Answer]:
    """Put each answer beside the columns of its row, as they were read.

    A field that has the name of a column gets ``predicted_`` before it, and a warning says so.
    """
    columns = {name for row in given for name in row}
    names = {name: name for answer in answers for name in answer}
    for name in names:
        while names[name] in columns:
            names[name] = f"predicted_{names[name]}"
    if both := [name for name in names if names[name] != name]:
        now = ", ".join(names[name] for name in both)
        logger.warning("the rows have %s: what is predicted is in %s", ", ".join(both), now)
    found = []
    for row, answer in zip(given, answers, strict=True):
        number, *own = ((names[name], value) for name, value in answer.items())
        # A column may hold bytes, or half a character, which no file can.
        text = json.dumps(row, default=str, ensure_ascii=False)
        plain = json.loads(text.encode("utf-8", "replace"))
        found.append(dict([number, *plain.items(), *own]))
    return found


def predict_to(
    run: Run, rows: Rows, given: list[Row], output: Path, *, overwrite: bool = False
) -> int:
    """Answer rows into a file, JSON Lines or CSV by its ending; a link stays one to that file.

    ``given`` are the rows as they were read, with all their columns. Returned is how many rows an
    earlier call had answered, which are not answered again. A file that is there already, even if
    another command finished it meanwhile, or that has the rows, is refused.
    """
    for name in files_of(rows.path):
        if output.exists() and os.path.exists(name) and output.samefile(name):
            raise ValueError(f"--output {output} is where the rows are, {name}: choose another")
    output = Path(os.path.realpath(output))
    refuse_there(output, overwrite=overwrite)
    part, key = output.with_name(f"{output.name}.lorada-part"), _key(run, rows)
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
        refuse_there(output, overwrite=overwrite)
        if output.suffix.lower() == ".csv":
            write_atomic(output, _csv(beside(given, [_flat(answer) for answer in answers])))
        else:
            write_atomic(output, json_lines(beside(given, answers)))
    say_cut(run, [answer.get("cut", False) for answer in answers])
    part.unlink(missing_ok=True)
    return before


def _key(run: Run, rows: Rows) -> str:
    """What the answers depend on, in short: the rows, the run's recipe and its weights."""
    weights = [p for name in WEIGHTS for p in sorted(run.folder.glob(name))]
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in weights]
    recipe = (run.folder / RECIPE_FILE).read_text(encoding="utf-8")
    limit = run.recipe.max_new_tokens
    text = json_text([rows.fingerprint, rows.form, rows.labels, PART, recipe, files, limit])
    return hashlib.sha256(text.encode()).hexdigest()


def _answered_before(part: Path, key: str, size: int) -> list[Answer]:
    """The answers of whole parts in an unfinished file; none if it is of other rows or a run."""
    lines = part.read_bytes().splitlines(True) if part.is_file() else []
    if lines and lines[0] != json_lines([{"of": key}]).encode():
        logger.warning("%s is of other rows, settings or weights, and is begun anew", part)
        return []
    answers = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    return answers[: len(answers) - len(answers) % size]


def _csv(lines: list[Answer]) -> str:
    """Lines as CSV; lists are JSON in a cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)))
    writer.writeheader()
    for line in lines:
        lists = {k: json.dumps(v, ensure_ascii=False) for k, v in line.items()
                 if isinstance(v, list | dict)}  # fmt: skip
        writer.writerow(line | lists)
    return text.getvalue()


def _flat(answer: Answer) -> Answer:
    """An answer with a field for the probability of each class."""
    probs = {f"prob_{label}": share for label, share in answer.get("probs", {}).items()}
    return {name: value for name, value in answer.items() if name != "probs"} | probs
