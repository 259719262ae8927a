"""Rows as dicts from the bytes of files: which files there are, and what is in each.

The csv and json modules read text, not ``datasets``: an error can name the line, labels such as 01
stay texts, and a field that only some rows have is not added to the others.
"""

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorada.data.files.hub_rows import as_json, hub_rows
from lorada.data.files.table_rows import refuse_same_columns, table_rows
from lorada.data.files.written_numbers import parse_number
from lorada.support.in_words import counted
from lorada.support.row_sources import (
    BUILTIN,
    HUB,
    PARQUET,
    TEXTS,
    Row,
    ending_of,
    files_of,
    hub_source,
    resolve,
)

logger = logging.getLogger(__name__)

BLANKS = re.compile(r"\s*")


class RowsSetting(NamedTuple):
    """A setting that names files of rows, and what a user does where they are missing."""

    name: str
    remedy: str

    @property
    def resumed(self) -> "RowsSetting":
        """The same setting of what goes on, where no other files may take its place."""
        return self._replace(name=f"{self.name} of what is resumed", remedy="put it back")


DATA = RowsSetting("data", "pass --data FILE")
EVAL_DATA = RowsSetting("eval_data", "pass eval_data=FILE")
HELD_OUT = RowsSetting("--held-out", "pass --held-out FILE")
KEEP = RowsSetting("--keep", "pass --keep FILE")
OF_RUN = RowsSetting("eval_data of the run", "put it back, or pass --data FILE")
SHARED = RowsSetting("data of the run, of which it holds out a share",
                     "put it back, or pass other rows with --data FILE")  # fmt: skip


def refuse_missing(path: str | Path | None, setting: RowsSetting = DATA) -> str | Path:
    """Return the path of rows, or refuse it if none is given or a file of it is missing.

    Whether a data set of the hub is there is not asked yet. ``setting`` is what the user has named
    the rows by, and what the error proposes.
    """
    if path is None:
        raise ValueError("no data: pass --data FILE; lorada train and compare also take --task")
    for name in files_of(path):
        if hub_source(name) is None and not resolve(name).is_file():
            # A bundled file is shown where it was looked for, others as the user wrote them.
            file = resolve(name) if name.startswith(BUILTIN) else name
            owner = "" if setting.name == DATA.name else f", which is {setting.name}"
            # Only where any file may be passed, it helps to know which endings there are.
            if not setting.remedy.endswith("FILE"):
                raise FileNotFoundError(f"no data file at {file}{owner}: {setting.remedy}")
            raise FileNotFoundError(
                f"no data file at {file}{owner}: {setting.remedy} ({', '.join(TEXTS)}, each also "
                f".gz, or {PARQUET}; commas between several) or a data set of the hub ({HUB})"
            )
    return path


def read_rows(path: str | Path) -> list[Row]:
    """All rows of what ``path`` names, in order; see ``read_files``."""
    rows: list[Row] = []
    for rows_of_file in read_files(path):
        rows += rows_of_file
    return rows


def read_files(path: str | Path | None, setting: RowsSetting = DATA) -> list[list[Row]]:
    """Read the rows of each file, or data set of the hub, that ``path`` names with commas between.

    A file that is missing, named twice or empty is refused; ``setting`` is what the user has named
    the rows by, which the error says. A file has one of the endings ``TEXTS`` or ``PARQUET``; one
    with another is read as JSON Lines. A local folder that ``datasets.load_dataset`` takes is read
    like a data set of the hub.
    """
    path = refuse_missing(path, setting)
    rows_of_files: dict[str, list[Row]] = {}
    for name in files_of(path):
        if name in rows_of_files:
            raise ValueError(f"{path} names {name} twice: leave one out")
        source = hub_source(name)
        rows = _file_rows(resolve(name)) if source is None else hub_rows(*source)
        if not rows:
            raise ValueError(f"{name} has no rows")
        rows_of_files[name] = rows
    if len(rows_of_files) > 1:
        counts = [f"{name}: {counted(len(rows), 'row')}" for name, rows in rows_of_files.items()]
        logger.info("%s", ", ".join(counts))
    return [*rows_of_files.values()]


def place_of(path: str, counts: Sequence[int], index: int) -> str:
    """The file of a row and its number there, from 1, as errors name a row.

    Args:
        path: all files, with commas between several.
        counts: how many rows each file has; empty for one file.
        index: of the row among the rows of all files.
    """
    for name, count in zip(files_of(path), counts, strict=False):
        if index < count:
            return f"{name} row {index + 1}"
        index -= count
    return f"{path} row {index + 1}"


def _file_rows(path: Path) -> list[Row]:
    """The rows of a file, by its ending."""
    ending = ending_of(path)
    if ending == PARQUET:
        return _parquet_rows(path)
    text = _text_of(path)
    if ending == ".txt":
        return _line_rows(path, text)
    if ending in (".csv", ".tsv"):
        return table_rows(path, text)
    return _json_rows(path, text)


def _text_of(path: Path) -> str:
    """The text of a file, unpacked if it is packed by gzip; refuses what is not UTF-8."""
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    try:
        return content.decode("utf-8-sig")  # without a mark of the order of bytes, if there is one
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start}): convert it, or give one of "
            f"{', '.join(TEXTS)} or {PARQUET}"
        ) from error


def _line_rows(path: Path, text: str) -> list[Row]:
    """A row for each line that is not blank."""
    # Not splitlines(), here and in tables: a text may hold U+2028, which ends no line.
    lines = [line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip()]
    logger.info("%s: each line is a text, %d of them", path, len(lines))
    return [{"text": line} for line in lines]


def _parquet_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file in the types of JSON.

    A file that is not Parquet, or has two columns of one name, is refused.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error
    refuse_same_columns(path, table.column_names)
    return [as_json(row) for row in table.to_pylist()]


def _json_rows(path: Path, text: str) -> list[Row]:
    """The rows of JSON or JSON Lines: objects one after another, or one list of them.

    What is no JSON, and a row that is no object, are refused.
    """
    decoder = json.JSONDecoder(parse_float=parse_number)
    rows: list[Any] = []
    position = len(text) - len(text.lstrip())
    try:
        while position < len(text):
            value, end = decoder.raw_decode(text, position)
            # Only a list that begins the file holds the rows. A later one is no row, and refused
            # below by its number.
            rows += value if isinstance(value, list) and not rows else [value]
            position = BLANKS.match(text, end).end()  # type: ignore[union-attr] # it fits any text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} row {number} is not a JSON object with named fields")
    return rows
