"""Rows as they stand: read from files, the hub or a benchmark; their places, answers and shares.

The csv and json modules read text, not ``datasets``: an error can name the line, labels such as 01
stay texts, and a field that only some rows have is not added to the others.
"""

import csv
import gzip
import io
import json
import logging
import os
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lorada.data.row_values import parse_number
from lorada.data.task import Source
from lorada.data.tool_calls import calls_of
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

csv.field_size_limit(2**31 - 1)  # characters of a field; Python's own limit is 131,072
DELIMITERS = ",;\t|"  # of a table
BLANK_LINES = re.compile(rf"(?:[{DELIMITERS} ]*\r?\n)*")  # before a table
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
OF_RUN = RowsSetting("eval_data of the run", "put it back, or pass --data FILE")
SHARED = RowsSetting("data of the run, of which it holds out a share",
                     "put it back, or pass other rows with --data FILE")  # fmt: skip


def refuse_missing(path: str | Path | None, setting: RowsSetting = DATA) -> str | Path:
    """The path of rows, unless a file is missing; a data set of the hub is not asked for yet."""
    if path is None:
        raise ValueError("no data: pass --data FILE; lorada train and compare also take --task")
    for name in files_of(path):
        if hub_source(name) is None and not resolve(name).is_file():
            shown = resolve(name) if name.startswith(BUILTIN) else name
            named = "" if setting.name == DATA.name else f", which is {setting.name}"
            if not setting.remedy.endswith("FILE"):
                raise FileNotFoundError(f"no data file at {shown}{named}: {setting.remedy}")
            raise FileNotFoundError(
                f"no data file at {shown}{named}: {setting.remedy} ({', '.join(TEXTS)}, each also "
                f".gz, or {PARQUET}; commas between several) or a data set of the hub ({HUB})"
            )
    return path


def read_rows(path: str | Path) -> list[Row]:
    """All rows of what ``path`` names, in order; see ``read_files``."""
    return [row for rows in read_files(path) for row in rows]


def read_files(path: str | Path | None, setting: RowsSetting = DATA) -> list[list[Row]]:
    """The rows of each file, or data set of the hub, that ``path`` names with commas between.

    ``setting`` is what the user has named them by, which an error says if one is missing.
    A file has one of the endings ``TEXTS`` or ``PARQUET``; one with another is read as JSON Lines.
    A local folder that ``datasets.load_dataset`` takes is read like a data set of the hub.
    """
    path, found = refuse_missing(path, setting), {}
    for name in files_of(path):
        if name in found:
            raise ValueError(f"{path} names {name} twice: leave one out")
        source = hub_source(name)
        found[name] = _file_rows(resolve(name)) if source is None else _hub_rows(*source)
        if not found[name]:
            raise ValueError(f"{name} has no rows")
    if len(found) > 1:
        each = (f"{name}: {counted(len(rows), 'row')}" for name, rows in found.items())
        logger.info("%s", ", ".join(each))
    return list(found.values())


def from_hub(what: str, remedy: str, *names: str | None, **options: str | None) -> Any:
    """What ``datasets.load_dataset`` gives; ``what`` and ``remedy`` are said if it fails."""
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
    rows = [_as_json(row) for row in found]
    for field, feature in found.features.items():
        # Of several labels a row, each is a class.
        inner = feature if isinstance(feature, ClassLabel) else getattr(feature, "feature", None)
        if not isinstance(inner, ClassLabel):
            continue
        for row in rows:
            value = row[field]
            if isinstance(value, list):
                row[field] = [inner.int2str(number) for number in value]
            elif value is not None and value >= 0:  # -1 stands for no class
                row[field] = inner.int2str(value)
    return rows


def _as_json(row: Row) -> Row:
    """A row of Arrow in JSON's types; keys that are null are left out, but for a turn's content.

    Arrow gives all objects of a column the same keys, and what one lacks would be an argument of
    its tool.
    """
    return {
        name: json.loads(json.dumps(value, default=str), object_hook=_without_nulls)
        if not isinstance(value, bytes) else value  # which is refused where a text has to be
        for name, value in row.items()
    }  # fmt: skip


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {k: one for k, one in value.items() if one is not None or k == "content"}


def _file_rows(path: Path) -> list[Row]:
    ending = ending_of(path)
    if ending == PARQUET:
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
            f"{path} is not text in UTF-8 (byte {error.start}): convert it, or give one of "
            f"{', '.join(TEXTS)} or {PARQUET}"
        ) from error
    if ending == ".txt":
        # Not splitlines(), here and below: a text may hold U+2028, which ends no line.
        lines = [line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip()]
        logger.info("%s: each line is a text, %d of them", path, len(lines))
        return [{"text": line} for line in lines]
    return (_table_rows if ending in (".csv", ".tsv") else _json_rows)(path, text)


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error
    _refuse_twice(path, table.column_names)
    return [_as_json(row) for row in table.to_pylist()]


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one or leave it out")


def _json_rows(path: Path, text: str) -> list[Row]:
    """The rows of JSON or JSON Lines: objects one after another, or one list of them."""
    decoder = json.JSONDecoder(parse_float=parse_number)
    rows, at = list[Any](), len(text) - len(text.lstrip())
    try:
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            rows += value if isinstance(value, list) and not rows else [value]
            at = BLANKS.match(text, end).end()  # type: ignore[union-attr] # it fits any text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} row {number} is not a JSON object with named fields")
    return rows


def _table_rows(path: Path, text: str) -> list[Row]:
    """The rows of a table, by the delimiter that splits its header into the most names.

    Only the header decides: texts may be full of any delimiter, which ``csv.Sniffer`` counts.
    """
    blank = BLANK_LINES.match(text)[0]  # type: ignore[index] # it fits any text
    text = text.removeprefix(blank)

    names = {
        one: next(csv.reader(io.StringIO(text, newline=""), delimiter=one), [])
        for one in DELIMITERS
    }
    delimiter = max(DELIMITERS, key=lambda one: len(names[one]))
    spaced = any(name.startswith(" ") for name in names[delimiter][1:])  # as in "text, label"
    before = blank.count("\n")
    try:
        options = {"skipinitialspace": spaced, "strict": True}
        return _delimited(path, text, before, delimiter=delimiter, **options)
    except ValueError:
        # Many files with tabs quote nothing, and have quotes as they stand in the text.
        with suppress(ValueError):
            if delimiter == "\t":
                return _delimited(path, text, before, delimiter="\t", quoting=csv.QUOTE_NONE)
        raise


def _delimited(path: Path, text: str, before: int, **options: Any) -> list[Row]:
    """The rows of a table by the csv module, with so many lines before it."""
    # With newline="" the csv module decides where a line ends, inside quotes too.
    reader, rows = csv.DictReader(io.StringIO(text, newline=""), **options), list[Row]()
    try:
        names = [*(reader.fieldnames or ())]
        _refuse_twice(path, names)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} line {before + reader.line_num} has another number of fields than "
                    f"the header ({', '.join(names)})"
                )
            if len(names) > 1 and [*row.values()] == names:  # of files that were joined
                raise ValueError(
                    f"{path} line {before + reader.line_num} repeats the header: leave it out"
                )
            rows.append(row)
    except csv.Error as error:
        line = before + reader.reader.line_num  # type: ignore[attr-defined]
        raise ValueError(f"{path} line {line} is not CSV: {error}") from error
    return rows


DATA_VARIABLE = "LORADA_DATA"


def data_folder(chosen: str | None) -> Path | None:
    """The chosen local data folder, or the one in ``LORADA_DATA``; None for the hub."""
    name = chosen or os.environ.get(DATA_VARIABLE)
    if not name:
        return None
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no data folder at {name}: correct --data-dir or {DATA_VARIABLE}")
    return Path(name)


def read_source(source: Source, folder: Path | None) -> list[Row]:
    """All rows of a split, in order, from a local data folder; from the hub if that is None."""
    if folder is None:
        return _from_hub(source)
    stem = folder / source.folder / source.split
    for path in (Path(f"{stem}.jsonl.gz"), Path(f"{stem}.jsonl")):
        if path.is_file():
            return read_rows(path)
    raise FileNotFoundError(f"no data at {stem}.jsonl.gz: correct --data-dir or {DATA_VARIABLE}")


def _from_hub(source: Source) -> list[Row]:
    if not source.hub:
        raise ValueError(
            f"{source.folder}/{source.split} is not on the hub: pass --data-dir DIR or set "
            f"{DATA_VARIABLE} to a folder that has it"
        )
    what = f"cannot load {source.hub} from the hub"
    remedy = (
        f"pass --data-dir DIR or set {DATA_VARIABLE} to a folder with {source.folder}/"
        f"{source.split}.jsonl.gz, or take your own rows with --data FILE"
    )
    if not source.hub.startswith("https://"):
        return list(from_hub(what, remedy, source.hub, source.config, split=source.split))
    # One file at a time, because the files have different fields besides the text.
    files = (
        from_hub(what, remedy, "json", data_files=address, split="train")
        for address in source.hub.split()
    )
    return [row for loaded in files for row in loaded]


def place_of(path: str, counts: Sequence[int], index: int) -> str:
    """The file of a row and its number there, from 1; ``counts`` are the rows of each file."""
    for name, count in zip(files_of(path), counts, strict=False):
        if index < count:
            return f"{name} row {index + 1}"
        index -= count
    return f"{path} row {index + 1}"


def content_of(row: Row) -> str:
    """A row without its group as one text, the same from CSV and JSON; blanks count as one."""
    of_kind: dict[str, Callable[[Any], Any]] = {
        "label": str, "labels": sorted, "score": float, "answer": str,
    }  # fmt: skip
    plain = {
        key: of_kind.get(key, _plain)(value)
        for key, value in row.items()
        if value is not None and key != "group"
    }
    return json.dumps(plain, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def answer_of(row: Row) -> str:
    """The right answer to a row, for a model that answers with a text."""
    if "eval_response" in row:
        return str(row["eval_response"])
    if "messages" not in row:
        return str(row["response"])
    last = row["messages"][-1]
    calls = [call.text for call in calls_of(last)]
    return "\n".join([*filter(None, [last.get("content")]), *calls])


SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share_of(text: str | None) -> float | None:
    """The share that ``20%`` names, from 0 to 1; None for the name of a file."""
    found = SHARE.fullmatch(text or "")
    if found is None:
        return None
    share = float(found[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"{text} of the rows cannot be held out: give a share between 0% and 100%")
    return share


def drawn(rows: list[Row], share: float, seed: int) -> list[int]:
    """The indices of the rows that are held out, in order.

    Rows of one group stay together, and without groups those with equal content. Each class loses
    the same share (rows with several labels count as of the rarest of these), rounded so that the
    shares of all classes add up; a row that is the only one of its class is learned.
    """
    together: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        together[str(row["group"]) if "group" in row else content_of(row)].append(index)
    classes: dict[str, list[list[int]]] = defaultdict(list)
    class_of = _strata(rows)
    for group in together.values():
        classes[class_of[group[0]]].append(group)
    chance, found, rest = random.Random(seed), list[int](), 0.0
    for name in sorted(classes):
        groups, before = classes[name], len(found)
        wanted = share * sum(map(len, groups)) + rest
        chance.shuffle(groups)
        for group in groups[1:]:  # the first is learned
            if len(found) - before + len(group) / 2 <= wanted:
                found += group
        rest = min(wanted - (len(found) - before), 1.0)
    if not found:
        raise ValueError(
            f"{100 * share:g}% of {len(rows)} rows holds out none: give more rows or a larger share"
        )
    return sorted(found)


def _strata(rows: list[Row]) -> list[str]:
    """The class of each row; of several labels the one that fewest rows have, or none."""
    counts = Counter(label for row in rows for label in row.get("labels", ()))
    strata = []
    for row in rows:
        if "labels" in row:
            strata.append(min(row["labels"], key=lambda label: (counts[label], label), default=""))
        else:
            strata.append(str(row.get("label")))
    return strata
