"""Tables as CSV that spreadsheets open as they are meant: UTF-8, and no text runs as a formula."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

BYTE_ORDER_MARK = "\ufeff"  # by which spreadsheets know that a file is UTF-8
# What a cell of a formula begins with; some programs skip a tab or the end of a line before it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?")


def spreadsheet_csv(header: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """A table as the text of a CSV file.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which marks it
    as a text there; a number stays one.
    """
    table = io.StringIO(newline="")
    table.write(BYTE_ORDER_MARK)
    writer = csv.writer(table)
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    # A text may hold half a character, which no file can.
    return table.getvalue().encode("utf-8", "replace").decode("utf-8")


def _cell(value: str | int | float) -> str | int | float:
    if isinstance(value, str) and value.startswith(FORMULA) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value
