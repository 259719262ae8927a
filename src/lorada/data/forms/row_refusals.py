"""Refuses rows and columns that would be read as something else than they say, with the remedy.

A text with a misspelt ``lable`` would be a text to continue, and a question would be learned
without its context. What a user has named by ``--columns`` is read as it is named.
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorada.data.forms.row_readings import BY_CHANCE, KNOWN, Reading
from lorada.data.forms.row_values import GROUP, TURNS, as_binary, plain_name
from lorada.support.error_messages import unknown_name
from lorada.support.row_sources import HEADED, Row

MOST = 3  # forms that an error lists
NEAR = 0.8  # the least likeness of a misspelt name: that of lable to label
# Names beside a text of what is probably its class, or the answer to it; others are near these.
CLASS_LIKE = (
    "label", "labels", "class", "category", "sentiment", "intent", "emotion", "tag", "tags",
    "target", "stars", "rating",
)  # fmt: skip
ANSWER_LIKE = (
    "response", "output", "completion", "answer", "answers", "reply", "summary", "translation",
)  # fmt: skip
# Fields that a model reads before others: without them a row asks something else.
READ_BEFORE = "context", "input", "system", "tools"
# Names in use for such fields, and for candidates, that rows may have for something else too.
SYNONYMS = {
    "passage": "context", "article": "context", "paragraph": "context", "document": "context",
    "background": "context", "support": "context", "system_prompt": "system",
    "options": "candidates", "choices": "candidates",
}  # fmt: skip
FEW = 5  # words that a context has at least, where its field might hold the name of a file
USUAL = "prompt/response, messages, text/label, text/score, text"  # where no form is near


def refuse_columns(rows: list[Row], path: str, columns: Mapping[str, str]) -> None:
    """Refuse columns of an unknown name, that no row has, or that have two names."""
    keys = _keys_of(rows)
    key_called = {plain_name(key): key for key in keys}
    label_columns = columns_of_labels(columns, rows)
    owners: dict[str, str] = {}  # of each field of the rows, the name of ours that it stands for
    for ours, theirs in columns.items():
        if ours not in KNOWN:
            raise unknown_name("field in columns", ours, KNOWN)
        names = label_columns if ours == "labels" and label_columns else [theirs]
        for name in names:
            if plain_name(name) not in key_called:
                near = difflib.get_close_matches(plain_name(name), key_called)
                meant = " or ".join(key_called[near_name] for near_name in near)
                hint = f"; did you mean {meant}?" if near else ""
                raise ValueError(
                    f"columns names {name!r}, and {path} has only {', '.join(keys)}{hint}"
                )
            owner = owners.setdefault(plain_name(name), ours)
            if owner != ours:
                raise ValueError(
                    f"columns names {name!r} as {owner} and as {ours}: one field can be only one "
                    "of them"
                )


def _keys_of(rows: list[Row]) -> list[str]:
    """The names of all fields that some row has, in the order of the rows."""
    keys: dict[str, None] = {}
    for row in rows:
        keys |= dict.fromkeys(row)
    return list(keys)


def columns_of_labels(columns: Mapping[str, str], rows: list[Row]) -> list[str]:
    """The columns that ``labels=toxic+rude`` names, as the rows have them; none for one field."""
    label_columns = columns.get("labels", "")
    if "+" not in label_columns:
        return []
    key_called = {plain_name(key): key for key in _keys_of(rows)}
    if plain_name(label_columns) in key_called:  # a field whose own name has a plus
        return []
    names = [name.strip() for name in label_columns.split("+")]
    return [key_called.get(plain_name(name), name) for name in names]


class Unread(NamedTuple):
    """The fields of rows that are not read, in the order of the rows."""

    names: list[str]
    rows: list[Row]

    @classmethod
    def of(cls, rows: list[Row], keys: Collection[str]) -> "Unread":
        """The fields of the rows that are not among the ``keys`` that some row is read by."""
        return cls([name for name in _keys_of(rows) if name not in keys], rows)

    def first_with(self, name: str) -> int | None:
        """The index of the first row in which a field holds something."""
        for index, row in enumerate(self.rows):
            if row.get(name) not in (None, "", [], {}):
                return index
        return None

    def is_binary(self, name: str) -> bool:
        """Whether a column has 0 and 1, both, and nothing else."""
        values = {as_binary(row.get(name)) for row in self.rows}
        return values == {False, True}


def refuse_unread(
    unread: Unread,
    reading: Reading,
    keys: Mapping[str, str],
    columns: Mapping[str, str],
    where: Callable[[int], str],
) -> None:
    """Refuse rows that would say something else if the unread fields were read.

    Args:
        unread: the fields that are not read.
        reading: how the rows are read.
        keys: the rows' own names of the fields that it reads.
        columns: the user's names of fields; a user who names all that the reading needs has decided
            that the others are not read.
        where: index of a row → its place.
    """
    needed = {name.removesuffix(TURNS) for name in reading.fields.split()}
    if needed <= columns.keys():
        return
    if reading.form == "text" and plain_name(keys["text"]) == "text":
        _refuse_text_alone(unread, keys["text"], where)
    elif reading.form != "text":
        _refuse_unread_context(unread, reading, keys, where)


def _refuse_text_alone(unread: Unread, text: str, where: Callable[[int], str]) -> None:
    """Refuse to learn a text alone where another field looks like its label or the answer to it."""
    alone = f"--columns text={text} learns the texts alone"
    binary = [name for name in unread.names if unread.is_binary(name)]
    if len(binary) > 1:
        names = " and ".join(binary)
        if len(binary) > 2:
            names = f"{', '.join(binary[:3])} …"
        raise ValueError(
            f"{where(0)}: beside {text}, {names} look like labels: --columns "
            f"labels={'+'.join(binary)} reads them, and {alone}"
        )
    for name in unread.names:
        index = unread.first_with(name)
        if index is None:
            continue
        plain = plain_name(name)
        if name in binary or _is_nearly(plain, CLASS_LIKE):
            raise ValueError(
                f"{where(index)}: beside {text}, {name!r} looks like a label: --columns "
                f"label={name} reads it, and {alone}"
            )
        if _is_nearly(plain, ANSWER_LIKE):
            raise ValueError(
                f"{where(index)}: beside {text}, {name!r} looks like the answer to it: --columns "
                f"prompt={text},response={name} reads both, and {alone}"
            )


def _refuse_unread_context(
    unread: Unread, reading: Reading, keys: Mapping[str, str], where: Callable[[int], str]
) -> None:
    """Refuse rows with a field that a model would have to read before the others."""
    fields = [field for field in reading.fields.split() if field in keys]
    names = [keys[field] for field in fields]
    alone = ",".join(f"{field.removesuffix(TURNS)}={keys[field]}" for field in fields)
    for name in unread.names:
        index = unread.first_with(name)
        if index is None or not _is_read_before(name, unread.rows[index], names):
            continue
        columns = _columns_with(name, reading, fields, names)
        reads_both = f"--columns {columns} reads it too, and " if columns else ""
        raise ValueError(
            f"{where(index)} has {name!r} beside {'/'.join(names)}, which would not be read: "
            f"{reads_both}--columns {alone} leaves it out"
        )


def _is_read_before(name: str, row: Row, names: Sequence[str]) -> bool:
    """Whether a field holds what has to be read before those with the ``names``."""
    plain, value = plain_name(name), row[name]
    stands_in_others = any(str(value) in str(row.get(other)) for other in names)
    if stands_in_others and len(str(value)) >= BY_CHANCE:
        return False  # as in prompts that are ready: it is read already
    if SYNONYMS.get(plain) == "context":
        return isinstance(value, str) and len(value.split()) >= FEW
    return plain in READ_BEFORE or plain in SYNONYMS


def _columns_with(
    name: str, reading: Reading, fields: Sequence[str], names: Sequence[str]
) -> str | None:
    """The ``--columns`` by which a field is read too; None where no form has a place for it.

    ``fields`` are those that the reading needs, and ``names`` the rows' own names of these.
    """
    ours = SYNONYMS.get(plain_name(name), plain_name(name))
    if ours in reading.optional.split():
        return f"{ours}={name}"
    if reading.form == "prompt" and ours == "candidates":
        return f"prompt={names[0]},candidates={name},answer={names[-1]}"
    if reading.form == "prompt" and ours == "input":
        return f"instruction={names[0]},output={names[-1]}"
    if reading.form in HEADED and ours == "context" and "text_pair" not in fields:
        return f"text={name},text_pair={names[0]}"
    return None


def _is_nearly(name: str, names: Sequence[str]) -> bool:
    """Whether a field has one of these names, or nearly."""
    return bool(difflib.get_close_matches(name, names, n=1, cutoff=NEAR))


@dataclass(frozen=True)
class _Way:
    """The names of fields by which a row could be read, and how many of them it has."""

    fields: str  # as errors show them
    missing: int
    present: int


def unreadable_row(
    where: str, row: Row, readings: Sequence[Reading], keys: Mapping[str, str], *, answered: bool
) -> ValueError:
    """The refusal of a row that no reading fits, with the forms that are near.

    Args:
        where: the place of the row.
        row: the row.
        readings: those that it might have had.
        keys: the keys of the row's fields by our names.
        answered: whether rows must have their right answers.
    """
    misspelt = _misspelt_fields(row, keys, readings)
    present = {name.removesuffix(TURNS) for name in (*keys, *misspelt)}
    near_ways = [way for way in _ways_of(readings, present, answered=answered) if way.present]
    near_ways.sort(key=lambda way: (way.missing, -way.present))
    near_fields = [way.fields for way in near_ways[:MOST]]
    if not near_fields and not answered:
        near_fields = _usual_inputs(readings)[:MOST]
    needed = " or ".join(near_fields) or f"the fields of a form, such as {USUAL}"
    remedy = "--columns says which of your fields they are"
    if misspelt:
        meant = ",".join(f"{name}={key}" for name, key in misspelt.items())
        remedy = f"did you mean --columns {meant}?"
    return ValueError(f"{where} has fields {', '.join(row)}; each needs {needed}: {remedy}")


def _ways_of(readings: Sequence[Reading], present: set[str], *, answered: bool) -> list[_Way]:
    """All ways in which rows are read, each once, for a row in which some names are present."""
    ways: dict[str, _Way] = {}
    for reading in readings:
        for way in reading.ways:
            needed = [name for name in way if answered or way[name] != reading.right]
            names = [name.removesuffix(TURNS) for name in needed]
            count = sum(name in present for name in names)
            fields = "/".join(names)
            ways.setdefault(fields, _Way(fields, len(names) - count, count))
    return [*ways.values()]


def _usual_inputs(readings: Sequence[Reading]) -> list[str]:
    """What a row to be answered has by the usual names of each reading."""
    inputs: dict[str, None] = {}
    for reading in readings:
        names = [name for name in reading.fields.split() if name != reading.right]
        inputs["/".join(names)] = None
    return list(inputs)


def _misspelt_fields(
    row: Row, keys: Mapping[str, str], readings: Sequence[Reading]
) -> dict[str, str]:
    """Our names that fields of a row nearly have → its keys."""
    names: set[str] = set()
    for reading in readings:
        for way in reading.ways:
            names.update(name.removesuffix(TURNS) for name in way)
    present = {name.removesuffix(TURNS) for name in keys}
    missing_names = sorted(names - present - {GROUP})
    misspelt: dict[str, str] = {}
    for key in row:
        if key in keys.values():
            continue
        near = difflib.get_close_matches(plain_name(key), missing_names, n=1, cutoff=NEAR)
        if near:
            misspelt.setdefault(near[0], key)
    return misspelt
