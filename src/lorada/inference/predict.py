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

from lorada.data.rows.rows import Rows
from lorada.inference.answer_rows import RowAnswer, answer_rows
from lorada.inference.generate import say_cut
from lorada.inference.load import Run
from lorada.runs.recipe import RECIPE_FILE
from lorada.support.error_messages import SCORING, full_disk_in_one_line, memory_remedy
from lorada.support.files import json_lines, json_text, refuse_there, write_atomic
from lorada.support.row_sources import Row, files_of

logger = logging.getLogger(__name__)

PART = 32  # batches; within them, rows of similar length are answered together
WEIGHTS = "adapter/*", "model/*"  # of a run's folder
# What is written of the answer to a row: a line of JSON, or of a table.
AnswerLine = dict[str, Any]


@torch.no_grad()
def predict(run: Run, rows: Rows, done: int = 0) -> Iterator[list[AnswerLine]]:
    """Answer rows, as ``rows_to_answer`` makes them, but for the first ``done``, part by part.

    Yields:
        The answers of a part: ``row``, its number from 1; ``label`` or ``labels``, and ``probs`` by
        name; ``score``; the ``answer`` that was written and whether it was ``cut`` at the most
        tokens of one; or the index of the candidate as ``answer``, its text as ``candidate``.
    """
    rows_in_part = PART * run.recipe.eval_batch_size
    count = len(rows.rows)
    parts = []
    for start in range(done, count, rows_in_part):
        parts.append(range(start, min(start + rows_in_part, count)))
    answers = answer_rows(run, rows, parts)
    for part in parts:
        # Within a part answers come in any order, so all of it is awaited.
        with memory_remedy(SCORING):
            by_index = dict(islice(answers, len(part)))
        yield [_answer_line(rows, index, by_index[index]) for index in part]


def _answer_line(rows: Rows, index: int, answer: RowAnswer) -> AnswerLine:
    """What is said of the answer to a row; its fields are those that ``predict`` names."""
    line: AnswerLine = {"row": rows.number(index)}
    if answer.probs is not None:
        line[rows.form] = answer.value
        line["probs"] = dict(zip(rows.labels, answer.probs, strict=True))
    elif rows.form == "choice":
        line["answer"] = answer.value
        line["candidate"] = rows.rows[index]["candidates"][answer.value]
    elif rows.form == "score":
        line["score"] = answer.value
    else:
        line["answer"] = answer.value
    if answer.cut is not None:
        line["cut"] = answer.cut
    return line


def beside(columns_of_rows: list[Row], answers: list[AnswerLine]) -> list[AnswerLine]:
    """Put each answer beside the columns of its row, as they were read.

    A field that has the name of a column gets ``predicted_`` before it, and a warning says so.
    """
    names = _names_beside(columns_of_rows, answers)
    lines = []
    for row, answer in zip(columns_of_rows, answers, strict=True):
        renamed = {names[name]: value for name, value in answer.items()}
        # A column may hold bytes, or half a character, which no file can.
        text = json.dumps(row, default=str, ensure_ascii=False)
        columns = json.loads(text.encode("utf-8", "replace"))
        # The number of the row comes first, then its columns, then the answer.
        number = names["row"]
        lines.append({number: renamed.pop(number), **columns, **renamed})
    return lines


def _names_beside(columns_of_rows: list[Row], answers: list[AnswerLine]) -> dict[str, str]:
    """The fields of answers, each with the name that it has beside the columns of the rows.

    A field that the rows have too gets ``predicted_`` before its name, with a warning.
    """
    columns = {column for row in columns_of_rows for column in row}
    names = {}
    for field in dict.fromkeys(field for answer in answers for field in answer):
        name = field
        while name in columns:
            name = f"predicted_{name}"
        names[field] = name
    taken = [field for field, name in names.items() if name != field]
    if taken:
        logger.warning(
            "the rows have %s: what is predicted is in %s",
            ", ".join(taken),
            ", ".join(names[field] for field in taken),
        )
    return names


def predict_to(
    run: Run, rows: Rows, columns_of_rows: list[Row], output: Path, *, overwrite: bool = False
) -> int:
    """Answer rows into a file, JSON Lines or CSV by its ending; a link stays one to that file.

    Args:
        run: the run that answers.
        rows: what is to be answered.
        columns_of_rows: the same rows as they were read, with all their columns.
        output: the file. One that is there already, even if another command finished it meanwhile,
            or that has the rows, is refused.
        overwrite: replace the file that is there.

    Returns:
        How many rows an earlier call had answered, which are not answered again.
    """
    output = checked_output(output, rows, overwrite=overwrite)
    part_file = output.with_name(f"{output.name}.lorada-part")
    key = _key(run, rows)
    answers = _answered_before(part_file, key, PART * run.recipe.eval_batch_size)
    answered_before = len(answers)
    with full_disk_in_one_line(output, "Free space, then run the command again"):
        # The file begins anew without the part that a killed run had not finished.
        write_atomic(part_file, json_lines([{"of": key}, *answers]))
        with part_file.open("a", encoding="utf-8") as file:
            for part in predict(run, rows, answered_before):
                file.write(json_lines(part))
                file.flush()
                os.fsync(file.fileno())
                answers += part
        write_answers(output, columns_of_rows, answers, overwrite=overwrite)
    say_cut(run, [answer.get("cut", False) for answer in answers])
    part_file.unlink(missing_ok=True)
    return answered_before


def checked_output(output: Path, rows: Rows, *, overwrite: bool) -> Path:
    """The file that answers are written to, behind links; refuses that of the rows themselves."""
    for name in files_of(rows.path):
        if output.exists() and os.path.exists(name) and output.samefile(name):
            raise ValueError(f"--output {output} is where the rows are, {name}: choose another")
    output = Path(os.path.realpath(output))
    refuse_there(output, overwrite=overwrite)
    return output


def write_answers(
    output: Path, columns_of_rows: list[Row], answers: list[AnswerLine], *, overwrite: bool
) -> None:
    """Write answers beside the columns of their rows: JSON Lines, or CSV by the file's ending."""
    refuse_there(output, overwrite=overwrite)
    if output.suffix.lower() == ".csv":
        flat_answers = [_without_probs(answer) for answer in answers]
        write_atomic(output, _csv_text(beside(columns_of_rows, flat_answers)))
    else:
        write_atomic(output, json_lines(beside(columns_of_rows, answers)))


def _key(run: Run, rows: Rows) -> str:
    """A hash of what the answers depend on: the rows, the run's recipe and its files of weights.

    A file counts by its name, size and time, as to read gigabytes would take too long.
    """
    files = []
    for pattern in WEIGHTS:
        for path in sorted(run.folder.glob(pattern)):
            files.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    recipe = (run.folder / RECIPE_FILE).read_text(encoding="utf-8")
    limit = run.recipe.max_new_tokens
    text = json_text([rows.fingerprint, rows.form, rows.labels, PART, recipe, files, limit])
    return hashlib.sha256(text.encode()).hexdigest()


def _answered_before(part_file: Path, key: str, rows_in_part: int) -> list[AnswerLine]:
    """Read the answers in an unfinished file, so that they need not be given again.

    Only those of whole parts count, as a part is answered at once. None do if the file is of other
    rows, settings or weights (``key``).

    A warning says so where there are such answers of other rows.
    """
    lines = part_file.read_bytes().splitlines(True) if part_file.is_file() else []
    if lines and lines[0] != json_lines([{"of": key}]).encode():
        logger.warning("%s is of other rows, settings or weights, and is begun anew", part_file)
        return []
    # A line without an end was being written when the run was killed.
    answers = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    return answers[: len(answers) - len(answers) % rows_in_part]


def _csv_text(lines: list[AnswerLine]) -> str:
    """Lines as CSV; lists are JSON in a cell."""
    text = io.StringIO()
    columns = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _cell(value) for name, value in line.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell of a table holds it."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return value


def _without_probs(answer: AnswerLine) -> AnswerLine:
    """An answer with a field for the probability of each class in place of ``probs``."""
    flat = {name: value for name, value in answer.items() if name != "probs"}
    for label, prob in answer.get("probs", {}).items():
        flat[f"prob_{label}"] = prob
    return flat
