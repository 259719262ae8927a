"""Reads rows as they stand: JSON Lines, JSON, CSV or Parquet, or a data set of the hub."""

import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

from lorada.data.rows import BUILTIN, Row, resolve

csv.field_size_limit(2**31 - 1)  # characters of a field; Python's own limit is 131,072
ENDINGS = ".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB = "owner/name, owner/name:config or owner/name:config@split"


def there(path: str | Path | None) -> str | Path:
    """The path of rows if they are there; a data set of the hub is not asked for yet.

    Raises:
        ValueError: if there is no path.
        FileNotFoundError: if there is no such file.
    """
    if path is None:
        raise ValueError("no data: pass --data FILE; lorada train and compare also take --task")
    if hub_source(path) is None and not resolve(path).is_file():
        raise FileNotFoundError(
            f"no data file at {resolve(path)}: pass --data FILE ({', '.join(ENDINGS)}) or a data "
            f"set of the hub ({HUB})"
        )
    return path


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file with one of ``ENDINGS`` or of a data set of the hub (``HUB``), in order.

    A local folder that ``datasets.load_dataset`` takes is read like a data set of the hub.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an empty file, a broken line (with its number), two columns of one
            name, an encoding other than UTF-8, or a data set that cannot be loaded.
    """
    source = hub_source(there(path))
    rows = _file_rows(resolve(path)) if source is None else _hub_rows(*source)
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


def from_hub(what: str, remedy: str, *names: str | None, **options: str | None) -> Any:
    """What ``datasets.load_dataset`` gives; ``what`` and ``remedy`` are said if it fails.

    Raises:
        ValueError: if it fails.
    """
    from datasets import load_dataset

    try:
        return load_dataset(*names, **options)
    except Exception as error:  # the hub's client raises many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{what} ({reason}): {remedy}") from error


def _hub_rows(name: str, config: str | None, split: str | None) -> list[Row]:
    """The rows of one split, with the names of classes in place of their numbers."""
    from datasets import ClassLabel, DatasetDict

    what = f"there is no file {name}, and it cannot be loaded as a data set of the hub"
    found = from_hub(what, f"pass a file that is there, or {HUB}", name, config, split=split)
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


def _json_rows(path: Path, text: str) -> list[Row]:
    """The rows of a file that has one in each line, or is one list, as Alpaca's is."""
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        try:
            found = list(enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        each = "row"
    else:
        found, each = [], "line"
        # Not splitlines(): a JSON string may hold U+2028, which is no line end in JSON Lines.
        for number, line in enumerate(io.StringIO(text, newline=None), start=1):
            if not line.strip():
                continue
            try:
                found.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", str(error))
                raise ValueError(f"{path} line {number} is not JSON: {reason}") from error
    for number, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{path} {each} {number} is not a JSON object with named fields")
    return [row for _, row in found]


def _refuse_twice(path: Path, columns: list[str]) -> None:
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r}: rename one or leave it out")


def _csv_rows(path: Path, text: str) -> list[Row]:
    # With newline="" the csv module decides where a line ends, inside quotes too.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
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
    return rows
