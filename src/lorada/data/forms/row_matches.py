"""Finds which readings fit a row, by the names of its fields that hold something.

A reading fits if the row has all the fields that it needs. Where several fit, rules leave out those
that are not meant; if more than one is left, the row is refused and the user says which.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorada.data.forms.row_readings import KNOWN, Reading
from lorada.data.forms.row_values import GROUP, TEXT_OR_TURNS, TURNS, are_turns, plain_name
from lorada.support.row_sources import Row

Columns = Mapping[str, str]  # a name of ours → the user's name for that field
RowKind = tuple[tuple[str, bool], ...]  # each key of a row that is not null: does it hold turns?


@dataclass(frozen=True)
class Match:
    """A reading that fits a row.

    Attributes:
        reading: the reading.
        names: the names by which the row has the fields that it needs; without that of the right
            answer, where rows are to be answered.
        keys: for each field that is read, the row's own name of it.
    """

    reading: Reading
    names: tuple[str, ...]
    keys: dict[str, str]

    @property
    def shown(self) -> str:
        """The names as errors show them."""
        return "/".join(self.names)

    @property
    def keys_read(self) -> frozenset[str]:
        """The row's own names of all that is read."""
        return frozenset(self.keys.values())

    def reads_as(self, other: "Match") -> bool:
        """Whether both take the same fields by the same names."""
        return self.reading == other.reading and self.names == other.names


def kind_of(row: Row) -> RowKind:
    """What decides how a row is read: its fields that are not null, and which hold turns."""
    return tuple((key, are_turns(value)) for key, value in row.items() if value is not None)


def our_names_by_key(row: Row, columns: Columns) -> dict[str, str]:
    """Our name of each field of a row, by its key; also of fields that are null or not read."""
    ours = {plain_name(theirs): name for name, theirs in columns.items()}
    return {key: ours.get(plain_name(key), plain_name(key)) for key in row}


def keys_by_our_name(kind: RowKind, columns: Columns, where: Callable[[], str]) -> dict[str, str]:
    """The keys of a row by our names, ``[]`` behind the name of a field that holds turns.

    Raises:
        ValueError: for two keys of one name; ``where`` says in which row.
    """
    holds_turns = dict(kind)
    keys: dict[str, str] = {}
    for ours, theirs in columns.items():
        key = _key_called(theirs, holds_turns)
        if key is not None:
            keys[ours] = key
    named_by_user = set(keys)
    for key in holds_turns:
        name = plain_name(key)
        # A field that the user has named is not read by its own name besides.
        if key in [keys[ours] for ours in named_by_user]:
            continue
        if name not in KNOWN or name in named_by_user:
            continue
        if name in keys:
            two_keys = " and ".join(sorted(map(repr, (key, keys[name]))))
            raise ValueError(f"{where()} has both {two_keys}: rename one, or leave it out")
        keys[name] = key
    marked = {}
    for name, key in keys.items():
        is_turns = holds_turns[key] and name in TEXT_OR_TURNS
        marked[f"{name}{TURNS}" if is_turns else name] = key
    return marked


def _key_called(name: str, keys: Iterable[str]) -> str | None:
    """The key that a user calls by a name: this very one, or else the first that is nearly it."""
    alike = [key for key in keys if plain_name(key) == plain_name(name)]
    if name in alike:
        return name
    return alike[0] if alike else None


def match_readings(
    keys: Mapping[str, str], readings: Sequence[Reading], columns: Columns, *, answered: bool
) -> list[Match]:
    """The readings of a row with these ``keys`` by our names that may be meant.

    Args:
        keys: the keys of the row by our names, as of ``keys_by_our_name``.
        readings: the readings that it may have.
        columns: the fields that the user has named.
        answered: whether the row must have its right answer.
    """
    matches = []
    for reading in readings:
        matches += _matches_of(reading, keys, answered=answered)
    # Of readings that read the very same fields, the first of the table is meant.
    matches = _first_of_each(matches, lambda match: match.keys_read)
    matches = _drop_less_specific(matches)
    matches = _prefer_named_columns(matches, keys, columns)
    if not answered:
        # Two fields for the right answer are the same to rows that are to be answered.
        matches = _first_of_each(matches, lambda match: (match.reading, match.names))
    return _drop_fallbacks(matches)


def _matches_of(reading: Reading, keys: Mapping[str, str], *, answered: bool) -> list[Match]:
    """The ways in which a reading fits a row with these keys."""
    matches = []
    for way in reading.ways:
        needed = tuple(name for name in way if answered or way[name] != reading.right)
        if not set(needed) <= keys.keys():
            continue
        field_of = dict(way)
        for name in (*reading.optional.split(), GROUP):
            field_of[name] = name
        keys_read = {field: keys[name] for name, field in field_of.items() if name in keys}
        matches.append(Match(reading, needed, keys_read))
    return matches


Key = TypeVar("Key")


def _first_of_each(matches: Iterable[Match], key_of: Callable[[Match], Key]) -> list[Match]:
    """Of matches with the same key, the first."""
    first: dict[Key, Match] = {}
    for match in matches:
        first.setdefault(key_of(match), match)
    return [*first.values()]


def _drop_less_specific(matches: Sequence[Match]) -> list[Match]:
    """Of two readings, the one that reads all that the other does, and more."""
    specific = []
    for match in matches:
        if not any(match.keys_read < other.keys_read for other in matches):
            specific.append(match)
    return specific


def _prefer_named_columns(
    matches: list[Match], keys: Mapping[str, str], columns: Columns
) -> list[Match]:
    """The readings of all fields that the user has named; all readings if there is none."""
    named_keys: set[str] = set()
    for column in columns:
        for name in (column, f"{column}{TURNS}"):
            if name in keys:
                named_keys.add(keys[name])
    reading_all = [match for match in matches if match.keys_read >= named_keys]
    return reading_all or matches


def _drop_fallbacks(matches: list[Match]) -> list[Match]:
    """Without fallbacks, such as a text alone; if nothing else fits, the first of these."""
    usual = [match for match in matches if not match.reading.is_fallback]
    if usual:
        return usual
    return [match for match in matches if match.reading == matches[0].reading]
