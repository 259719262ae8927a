"""Rows of a user's own: read from files, brought to a form, and checked against a training's."""

import logging
import re

from lorada.data.files.read_rows import DATA, RowsSetting, read_files
from lorada.data.forms.row_forms import convert_rows, convert_rows_to_answer
from lorada.data.forms.row_matches import Columns
from lorada.data.rows.row_content import class_names_of
from lorada.data.rows.rows import Rows
from lorada.data.tasks import TASKS
from lorada.data.tool_calls import CALLS
from lorada.runs.recipe import JSONL
from lorada.support.metric_names import FREE
from lorada.support.row_sources import HEADED, NAMED, Form, Row

logger = logging.getLogger(__name__)

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def load_rows(
    path: str | None,
    trained: Form | None = None,
    labels: tuple[str, ...] = (),
    columns: Columns | None = None,
    training_columns: Columns | None = None,
    *,
    setting: RowsSetting = DATA,
) -> Rows:
    """Read a user's rows from files or the hub, and bring them to one form, a training's if given.

    Args:
        path: their names, with commas between several.
        trained: the form of the training rows, for rows to score; None for training rows.
        labels: the classes of the training rows.
        columns: a name of ours → the user's name for that field, which the rows must have.
        training_columns: the same of the training rows, which these may lack.
        setting: what names the rows, for errors.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for rows that cannot be read, and for rows that do not suit the training's.
    """
    files = read_files(path, setting)
    path = str(path)
    counts = tuple(len(rows) for rows in files)
    read: list[Row] = []
    for rows_of_file in files:
        read += rows_of_file
    rows, form = convert_rows(read, path, columns, training_columns, counts)
    if trained is not None:
        # A head and a model that writes cannot take each other's rows; two that write may.
        if form != trained and (form in HEADED or trained in HEADED):
            raise ValueError(f"{path} has {form} rows; this run has learned {trained} rows")
        rows, form = as_learned(rows, form, trained, path)
    classes = _classes_of(rows, form, path)
    if labels:
        _refuse_new_classes(classes, labels, path)
    loaded = Rows(
        rows,
        form,
        labels or classes,
        path,
        TASKS[JSONL].protocols[form],
        counts=counts,
        # A function of the user's that scores texts gets these columns; other rows need no copy.
        read=read if form in FREE else None,
    )
    if trained is not None:
        refuse_unanswered(loaded)
    return loaded


def rows_to_answer(
    rows: list[Row],
    path: str,
    learned: Form,
    labels: tuple[str, ...] = (),
    columns: Columns | None = None,
    training_columns: Columns | None = None,
    *,
    pairs: bool = False,
) -> Rows:
    """Bring rows to the form that a run has learned, for it to answer.

    ``rows`` are as they were read; right answers in them are left out. ``learned``, ``labels`` and
    ``training_columns`` are of the training's rows; ``pairs`` says whether these were pairs of
    texts only.

    A text alone is refused for a run that has learned pairs.
    """
    rows, form = convert_rows_to_answer(rows, path, learned, labels, columns, training_columns)
    if pairs:
        _refuse_single_texts(rows, path)
    if form == "text":  # a model that writes continues a text, as a prompt
        rows = [{"prompt": row["text"], "response": ""} for row in rows]
        form = "prompt"
    rows, form = as_learned(rows, form, learned, path)
    return Rows(rows, form, labels, path, TASKS[JSONL].protocols[form])


def _refuse_single_texts(rows: list[Row], path: str) -> None:
    """Refuse texts alone for a run that has learned pairs."""
    for number, row in enumerate(rows, start=1):
        if not row.get("text_pair"):
            raise ValueError(
                f"{path} row {number} has no text_pair, and this run has learned pairs of texts: "
                "pass rows that have both, with --data FILE"
            )


def as_learned(rows: list[Row], form: Form, learned: Form, path: str) -> tuple[list[Row], Form]:
    """Make chats of prompts, if a run has ``learned`` chats; other rows stay, with a warning.

    ``form`` is that of the rows.
    """
    if learned == form or "messages" not in (learned, form):
        return rows, form
    if form != "prompt":
        logger.warning("%s has %s rows, and this run has learned %s rows: only one of the two goes "
                       "through the chat template", path, form, learned)  # fmt: skip
        return rows, form
    logger.info("%s has prompts, and this run has learned chats: each is a user's turn", path)
    chats: list[Row] = []
    for row in rows:
        question = {"role": "user", "content": row["prompt"]}
        answer = {"role": "assistant", "content": row["response"]}
        chats.append({"messages": [question, answer]})
    return chats, "messages"


def _classes_of(rows: list[Row], form: Form, path: str) -> tuple[str, ...]:
    """The classes that rows have, in order; none for rows of another form.

    Refuses 1 beside 1.0, which are one class that two programs have written.
    """
    if form not in NAMED:
        return ()
    names: set[str] = set()
    for row in rows:
        names.update(class_names_of(row))
    for name in _sorted_classes(names):
        if f"{name}.0" in names:  # as from spreadsheets
            raise ValueError(f"{path} has the labels {name} and {name}.0: write both alike")
    return _sorted_classes(names)


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Class names sorted as numbers if all are whole numbers, else as texts."""
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _refuse_new_classes(classes: tuple[str, ...], labels: tuple[str, ...], path: str) -> None:
    """Refuse a class that the training did not know."""
    new_classes = sorted(set(classes) - set(labels))
    if new_classes:
        raise ValueError(
            f"{path} has the label {new_classes[0]!r}; training knew {', '.join(labels)}"
        )


def refuse_unanswered(rows: Rows) -> None:
    """Refuse a chat to score that does not end with a text or calls of the assistant."""
    if rows.form != "messages":
        return
    for index, row in enumerate(rows.rows):
        last_turn = row["messages"][-1]
        says_something = last_turn.get("content") is not None or last_turn.get(CALLS)
        if last_turn["role"] != "assistant" or not says_something:
            raise ValueError(
                f"{rows.place(index)}: a chat to score must end with a turn of the assistant: "
                "end it there, or leave it out"
            )
