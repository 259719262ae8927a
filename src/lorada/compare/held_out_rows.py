"""The held-out rows of a comparison with their texts, right answers and fields, read once more.

A comparison keeps answers by the number of a row, and texts only where it was asked to. The files
are read again here, and a fingerprint says whether they are as they were: a label that was changed
since would be judged by answers to another one.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lorada.compare.read_results import CandidateResult, Results, RowKey
from lorada.data.files.read_rows import read_rows
from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.row_content import right_answer
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import rows_to_score
from lorada.data.task import ANY_KIND
from lorada.runs.recipe import JSONL, Recipe
from lorada.runs.result import RunResult
from lorada.support.files import as_typed
from lorada.support.in_words import answer_in_words
from lorada.support.row_sources import HEADED, Form, Row


@dataclass(frozen=True)
class AskedRow:
    """A row that methods were scored on.

    Attributes:
        text: what was asked, as one text; candidates stand below, each with its number from 0.
        right: the right answer: a class, labels, a number, the number of a candidate or a text.
        fields: all columns of the row, as its file has them; empty where only text and right
            answer are stored.
    """

    text: str
    right: Any
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def right_in_words(self) -> str:
        """The right answer as a report shows it."""
        return answer_in_words(self.right)


def form_of(results: Results) -> Form:
    """The form of the rows that a comparison was scored on.

    Raises:
        ValueError: if no run is finished.
    """
    form: Form = _first_finished(results).first_run.result.form
    return form


def read_held_out(results: Results, *, with_fields: bool = False) -> dict[RowKey, AskedRow]:
    """The text and right answer of each held-out row, from what runs stored or from the files.

    Texts that were stored with the answers are taken as they are; the files are read where there
    are none, or ``with_fields``, as only they have all columns.

    Raises:
        ValueError: if no run is finished, if rows are plain text, which has no right answer, or if
            the files are gone or have other rows than at the comparison.
    """
    form = form_of(results)
    if form == "text":
        raise ValueError(
            f"{results.folder} compares losses on plain text, which has no right answer: no row of "
            "it can be wrong"
        )
    stored = stored_texts(results)
    if len(stored) == len(results.rows) and not with_fields:
        return stored
    return _from_files(results)


@contextmanager
def _without_notes_on_rows() -> Iterator[None]:
    """Keep back, in the ``with`` block, what lorada logs of rows as they are read.

    It would say that no training reads some fields, which was said when the comparison began; and
    such fields are what parts of the rows are named by. The log's level is as before afterwards.
    """
    rows_logger = logging.getLogger("lorada.data")
    level_before = rows_logger.level
    rows_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        rows_logger.setLevel(level_before)


def _first_finished(results: Results) -> CandidateResult:
    """The first candidate that has a finished run; refuses a comparison without one."""
    for candidate in results.candidates:
        if candidate.runs:
            return candidate
    reasons = [candidate.reason for candidate in results.candidates if candidate.reason]
    why = f" ({reasons[0]})" if reasons else ""
    resume = as_typed("lorada", "compare", results.folder, "--resume")
    raise ValueError(f"{results.folder} has no finished run{why}: go on with {resume}")


def stored_texts(results: Results) -> dict[RowKey, AskedRow]:
    """The rows whose text the runs have stored beside their answers; no file is read."""
    texts: dict[RowKey, AskedRow] = {}
    for candidate in results.candidates:
        for run in candidate.runs:
            for key in results.rows:
                prediction = run.predictions[key]
                if prediction.text is not None and prediction.right is not None:
                    texts[key] = AskedRow(str(prediction.text), prediction.right)
    return texts


def _from_files(results: Results) -> dict[RowKey, AskedRow]:
    """Read the held-out rows again, as the first finished run was asked them.

    Refuses files that are gone, and rows that are not those of the comparison.
    """
    candidate = _first_finished(results)
    recipe = results.asked.run_recipe(candidate.method, "-")
    result = candidate.first_run.result
    try:
        with _without_notes_on_rows():
            sets = _sets_of_rows(results, recipe, result)
    except (ValueError, OSError) as error:
        raise _changed_rows_error(results, str(error)) from error
    asked_rows: dict[RowKey, AskedRow] = {}
    for name, rows in sets.items():
        # A benchmark may have parts that this comparison was not scored on.
        if name not in results.plan.held_out:
            continue
        if rows.fingerprint != results.plan.held_out[name].sha256:
            raise _changed_rows_error(results, f"{rows.path} has other rows now")
        columns = _columns(rows, recipe)
        for index, row in enumerate(rows.rows):
            fields = columns[index] if columns else row
            text, right = text_of(row, rows.form), right_answer(row, rows.form)
            asked_rows[name, rows.number(index)] = AskedRow(text, right, fields)
    missing = [key for key in results.rows if key not in asked_rows]
    if missing:
        name, number = missing[0]
        raise _changed_rows_error(results, f"row {number} of {name} is not there")
    return asked_rows


def _sets_of_rows(results: Results, recipe: Recipe, result: RunResult) -> dict[str, Rows]:
    """Read the rows to score: name of a set, as scores have it → its rows.

    A user's own rows are one set. A benchmark may have several, and is read as each kind of model
    is asked it, until the fingerprints are those of the comparison.

    Raises:
        ValueError: if no kind of model has been asked rows with these fingerprints.
    """
    if recipe.task == JSONL:
        return {str(results.asked.held_out): rows_to_score(recipe, result, None)}
    # How a benchmark is asked depends on the kind of the model, which no result names; the
    # fingerprints say which of them it was. Some kinds have no such rows at all.
    error: ValueError | None = None
    for kind in ANY_KIND:
        try:
            sets = scored_rows(recipe, result.form, tuple(result.labels), kind)
        except ValueError as refusal:
            error = refusal
            continue
        planned = results.plan.held_out
        if all(sets[name].fingerprint == planned[name].sha256 for name in planned):
            return sets
    raise error or ValueError("its rows are others now")


def _columns(rows: Rows, recipe: Recipe) -> list[Row]:
    """All columns of the rows; empty for a benchmark, whose rows have those of its protocol."""
    if rows.read is not None:
        return rows.read
    if recipe.task != JSONL:
        return []
    # Rows that are a share of a file keep the numbers that they have in it, from 1.
    rows_of_file = read_rows(rows.path)
    return [rows_of_file[rows.number(index) - 1] for index in range(len(rows.rows))]


def _changed_rows_error(results: Results, why: str) -> ValueError:
    """An error (returned, not raised) for rows that are not as they were."""
    return ValueError(
        f"the held-out rows of {results.folder} are not as they were ({why}): put the files back, "
        "or compare again with --with-text, which keeps them"
    )


def text_of(row: Row, form: Form) -> str:
    """What a row asks, as one text; of a chat all turns but the last, which is the answer."""
    if form in HEADED:
        return "\n".join(filter(None, (row["text"], row.get("text_pair"))))
    if form == "messages":
        turns = [turn for turn in row["messages"][:-1] if turn.get("content")]
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    prompt = str(row.get("eval_prompt", row["prompt"]))
    if form == "choice":
        options = [f"{index}: {option}" for index, option in enumerate(row["candidates"])]
        return "\n".join([prompt, *options])
    return prompt
