"""Reads rows as they stand: JSON Lines, JSON, CSV or Parquet, or a data set of the hub."""

import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

from lorada.tasks.rows import BUILTIN, Row, resolve

FIELD_LIMIT = 2**31 - 1  # characters of a field of a CSV file; Python's own limit is 131,072
ENDINGS = ".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB = "owner/name, owner/name:config or owner/name:config@split"


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file with one of ``ENDINGS`` or of a data set of the hub (``HUB``), in order.

    A local folder that ``datasets.load_dataset`` takes is read like a data set of the hub.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an empty file, a broken line (with its number), a field that is there twice,
            an encoding other than UTF-8, or a data set that cannot be loaded.
    """
    if (source := hub_source(path)) is not None:
        rows = _hub_rows(*source)
    else:
        rows = _file_rows(resolve(path))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def hub_source(path: str | Path) -> tuple[str, str | None, str | None] | None:
    """The name, configuration and split of a data set of the hub; None if it is no such name.

    A file that is there, or a name with one of ``ENDINGS``, is a file.
    """
    text = str(path)
    is_file = Path(text).is_file() or text.lower().endswith(ENDINGS)
    if is_file or text.startswith(BUILTIN):
        return None
    rest, _, split = text.partition("@")
    name, _, config = rest.partition(":")
    if not (name and Path(name).is_dir()) and not HUB_NAME.fullmatch(name):
        return None
    return name, config or None, split or None


def _hub_rows(name: str, config: str | None, split: str | None) -> list[Row]:
    """The rows of one split, with the names of classes in place of their numbers."""
    from datasets import ClassLabel, DatasetDict, load_dataset

    try:
        found = load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client raises many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"there is no file {name}, and it cannot be loaded as a data set of the hub ({reason}):"
            f" pass a file that is there, or {HUB}"
        ) from error
    if isinstance(found, DatasetDict):
        if len(found) > 1:
            splits = " or ".join(f"{name}{f':{config}' * bool(config)}@{one}" for one in found)
            raise ValueError(f"{name} has several splits: pass {splits}")
        (found,) = found.values()
    classes = {k: one for k, one in found.features.items() if isinstance(one, ClassLabel)}
    rows: list[Row] = list(found)
    for row in rows:
        for field, feature in classes.items():
            if row[field] is not None and row[field] >= 0:  # -1 stands for no class
                row[field] = feature.int2str(row[field])
    return rows


def _file_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no data file at {path}: pass --data FILE ({', '.join(ENDINGS)}) or a data set of the "
            f"hub ({HUB})"
        )
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path)
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv"
        ) from error
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, text)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        return _json_list(path, text)
    return _json_rows(path, text)


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error
    _refuse_twice(path, table.column_names)
    rows: list[Row] = table.to_pylist()
    return rows


def _json_list(path: Path, text: str) -> list[Row]:
    """The rows of a file that is one list, as Alpaca's is."""
    try:
        rows = json.loads(text, object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} row {number} is not a JSON object with named fields")
    return list(rows)


def _json_rows(path: Path, text: str) -> list[Row]:
    rows = []
    # Not splitlines(): a JSON string may hold U+2028, which is no line end in JSON Lines.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_names)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise ValueError(f"{path} line {number} is not JSON: {reason}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is not a JSON object with named fields")
        rows.append(row)
    return rows


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises if a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the field {_twice([name for name, _ in pairs])!r} is there twice")
    return found


def _twice(names: list[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name in names if names.count(name) > 1), None)


def _refuse_twice(path: Path, columns: list[str]) -> None:
    if (name := _twice(columns)) is not None:
        raise ValueError(f"{path} has two columns {name!r}: rename one or leave it out")


def _csv_rows(path: Path, text: str) -> list[Row]:
    # With newline="" the csv module decides where a line ends, inside quotes too.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        named = [name for name in reader.fieldnames or [] if name]  # several names may be empty
        _refuse_twice(path, named)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} line {reader.line_num} has another number of fields than the header "
                    f"({', '.join(reader.fieldnames or [])})"
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return rows
