"""Rows of something else, which a model should still do after its training: ``--keep``.

Each of the user's files may have a form of its own. Without any, a model that continues texts is
scored on bundled rows of general skills.
"""

import logging
from dataclasses import dataclass, field, replace

from lorada.data.files.read_rows import KEEP
from lorada.data.forms.row_matches import Columns
from lorada.data.rows.own_rows import as_learned, load_rows, refuse_unanswered
from lorada.data.rows.rows import Rows, refuse_empty_prompts, refuse_kind
from lorada.data.rows.training_rows import OwnClasses
from lorada.data.task import Kind
from lorada.data.tasks import TASKS
from lorada.runs.recipe import JSONL
from lorada.support.in_words import answer_in_words
from lorada.support.row_sources import HEADED, Form, Row, files_of

logger = logging.getLogger(__name__)

GENERAL = "builtin:general.jsonl"  # the bundled rows


@dataclass(frozen=True)
class KeptRows:
    """Rows that a model should still do, by the name of their file; or why there are none."""

    by_name: dict[str, Rows] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Learned:
    """What the rows of a training tell about rows that are to be kept beside them.

    Attributes:
        form: of the training rows.
        labels: their classes, by index; empty for rows without classes.
        columns: the user's names of their fields, which kept rows may have too.
        kind: of the model.
    """

    form: Form
    labels: tuple[str, ...]
    columns: Columns | None
    kind: Kind


def kept_rows(keep: str | None, learned: Learned, own_classes: OwnClasses = None) -> KeptRows:
    """The rows that a model should still do.

    Args:
        keep: the user's files; None for the bundled rows, where these suit the model.
        learned: the rows of the training.
        own_classes: those of a model that is a classifier already.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for rows that the model cannot be scored on.
    """
    reason = _why_none(learned, own_classes)
    if keep is None:
        # They are completed as they stand, also by a model that learns chats.
        if not reason and (learned.kind != "decoder" or learned.form in HEADED):
            reason = (
                "the bundled rows are for a model that continues texts; --keep FILE names others"
            )
        return KeptRows(reason=reason) if reason else KeptRows({GENERAL: load_rows(GENERAL)})
    if reason:
        raise ValueError(f"--keep {keep}: {reason}: leave it out")
    rows_by_name = {}
    for name in files_of(keep):
        rows = _suited(load_rows(name, training_columns=learned.columns, setting=KEEP), learned)
        refuse_kind(rows, learned.kind)
        refuse_unanswered(rows)
        if learned.kind == "decoder" and rows.form == "prompt":
            refuse_empty_prompts(rows)
        rows_by_name[name] = rows
    return KeptRows(rows_by_name)


def _why_none(learned: Learned, own_classes: OwnClasses) -> str:
    """Why a model as it is does nothing that it could keep; empty if it does."""
    if learned.form not in HEADED:
        return ""
    known = {name.casefold() for name in own_classes or ()}
    if learned.labels and {label.casefold() for label in learned.labels} <= known:
        return ""
    return (
        "the head of this model begins at random, so that there is nothing yet that it does and "
        "could lose"
    )


def _suited(rows: Rows, learned: Learned) -> Rows:
    """The rows as a model that has learned such rows can be scored on them.

    A model that writes is asked to write the class of a text. One that learns chats is asked
    prompts as a user's turns.

    Raises:
        ValueError: for a model with a head: rows of another form, and labels that it does not have.
    """
    if learned.form in HEADED:
        if rows.form != learned.form:
            raise ValueError(
                f"--keep {rows.path} has {rows.form} rows, and this model answers {learned.form} "
                "rows: keep rows of that form"
            )
        unknown = sorted(set(rows.labels) - set(learned.labels))
        if unknown:
            raise ValueError(
                f"--keep {rows.path} has the label {unknown[0]!r}, and the model has "
                f"{', '.join(learned.labels)}: leave such rows out"
            )
        return replace(rows, labels=learned.labels)
    # From here on the model writes. Rows with classes become prompts first, so that the next step
    # makes turns of a chat of these too.
    new_rows, form = rows.rows, rows.form
    if form in HEADED:
        new_rows, form = [_written(row, form) for row in new_rows], "prompt"
    if learned.form == "messages":
        new_rows, form = as_learned(new_rows, form, learned.form, rows.path)
    if form == rows.form:
        return rows
    protocol = TASKS[JSONL].protocols[form]
    return replace(rows, rows=new_rows, form=form, labels=(), protocol=protocol, read=None)


def _written(row: Row, form: Form) -> Row:
    """A row with a class, labels or a number as a prompt, and a text that answers it."""
    texts = [str(row[name]) for name in ("text", "text_pair") if row.get(name)]
    answers = {"label": "label", "labels": "labels", "score": "score"}
    answer = answer_in_words(row[answers[form]])
    written = {"prompt": "\n".join(texts) + "\n", "response": answer}
    if "group" in row:  # rows of one group still count as one
        written["group"] = row["group"]
    return written
