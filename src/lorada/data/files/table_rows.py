"""Rows of a table as text: CSV, and other delimiters."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from lorada.support.row_sources import Row

csv.field_size_limit(2**31 - 1)  # characters of a field; Python's own limit is 131,072
DELIMITERS = ",;\t|"
BLANK_LINES = re.compile(rf"(?:[{DELIMITERS} ]*\r?\n)*")  # before a table


def table_rows(path: Path, text: str) -> list[Row]:
    """The rows of a table, by the delimiter that splits its header into the most names.

    Only the header decides: texts may be full of any delimiter, which ``csv.Sniffer`` counts.

    Raises:
        ValueError: for two columns of one name, a line with more or fewer fields than the header,
            and what the csv module cannot read; ``path`` is named with the line.
    """
    blank_lines = BLANK_LINES.match(text)[0]  # type: ignore[index] # it fits any text
    text = text.removeprefix(blank_lines)
    lines_before = blank_lines.count("\n")
    names_by_delimiter = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda delimiter: len(names_by_delimiter[delimiter]))
    names_behind_first = names_by_delimiter[delimiter][1:]
    has_spaces = any(name.startswith(" ") for name in names_behind_first)  # as in "text, label"
    dialect = {"delimiter": delimiter, "skipinitialspace": has_spaces, "strict": True}
    try:
        return _delimited_rows(path, text, lines_before, dialect)
    except ValueError:
        if delimiter != "\t":
            raise
        # Many files with tabs quote nothing, and have quotes as they stand in the text.
        unquoted = {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
        try:
            return _delimited_rows(path, text, lines_before, unquoted)
        except ValueError:
            pass
        raise  # what the usual reading has refused


def refuse_same_columns(path: Path, names: list[str]) -> None:
    """Refuse a table that has two columns of one name."""
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{path} has two columns {name!r}: rename one or leave it out")


def _header(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def _delimited_rows(path: Path, text: str, lines_before: int, dialect: dict[str, Any]) -> list[Row]:
    """The rows of a table by the csv module; ``lines_before`` are those before the text."""
    # With newline="" the csv module decides where a line ends, inside quotes too.
    reader = csv.DictReader(io.StringIO(text, newline=""), **dialect)
    rows: list[Row] = []
    try:
        names = [*(reader.fieldnames or ())]
        refuse_same_columns(path, names)
        for row in reader:
            line = lines_before + reader.line_num
            # The csv module has fields beyond the header under None, and None for those that lack.
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} line {line} has another number of fields than the header "
                    f"({', '.join(names)})"
                )
            if len(names) > 1 and [*row.values()] == names:  # of files that were joined
                raise ValueError(f"{path} line {line} repeats the header: leave it out")
            rows.append(row)
    except csv.Error as error:
        line = lines_before + reader.reader.line_num  # type: ignore[attr-defined]
        raise ValueError(f"{path} line {line} is not CSV: {error}") from error
    return rows
