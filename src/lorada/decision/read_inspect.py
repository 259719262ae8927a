"""Reads the logs of Inspect (inspect-ai): ``.eval``, a zip of JSON files, and ``.json``."""

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from lorada.decision.log_records import INSPECT, Log, LogRow, as_number, broken, parts_of

HEADER = "header.json"
START = "_journal/start.json"  # in place of a header as long as an evaluation goes on
SUMMARIES = "summaries.json"  # of all samples: what they scored, without what was said
SAMPLES = "samples/"
FINISHED = "success"
MOST_BYTES = 2**29  # of a file in the zip, unpacked: more is no summary of scores
LOCAL_HEADER = 30  # bytes that stand before the name of a file in a zip
# What Inspect's own metrics take a score in words for.
SPELLED_SCORES = {
    "C": 1.0,
    "I": 0.0,
    "P": 0.5,
    "N": 0.0,
    "yes": 1.0,
    "true": 1.0,
    "no": 0.0,
    "false": 0.0,
}


def is_inspect(log: Any) -> bool:
    """Whether the content of a JSON file is a log of Inspect."""
    return (
        isinstance(log, dict) and {"status", "eval"} <= log.keys() and isinstance(log["eval"], dict)
    )


def read_inspect_zip(path: Path, folders: tuple[str, ...]) -> Log:
    """Read a ``.eval`` file, also of an evaluation that is still going on; see ``read_inspect``.

    A file that is damaged, or no log, is refused.
    """
    # Files in the zip are read by their names and never unpacked, so a path in it leads nowhere.
    try:
        with zipfile.ZipFile(path) as archive:
            header = _header_in(archive, path)
            samples = _samples_in(archive, path)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError,
            KeyError, ValueError) as error:  # fmt: skip
        raise broken(path, error) from error
    if not is_inspect(header) or not isinstance(samples, list):
        raise broken(path, "it is no log of Inspect")
    return read_inspect({**header, "samples": samples}, path, folders)


def _header_in(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """What a zip says of the whole evaluation; of one that goes on with the status ``started``."""
    if HEADER in archive.namelist():
        header: dict[str, Any] = json.loads(_read_member(archive, path, HEADER))
        return header
    return {"status": "started", **json.loads(_read_member(archive, path, START))}


def _samples_in(archive: zipfile.ZipFile, path: Path) -> Any:
    """The summaries of all samples in a zip, or, if there are none yet, the samples themselves."""
    names = archive.namelist()
    if SUMMARIES in names:
        return json.loads(_read_member(archive, path, SUMMARIES))
    samples = []
    for name in names:
        if name.startswith(SAMPLES) and name.endswith(".json"):
            samples.append(json.loads(_read_member(archive, path, name)))
    return samples


def read_inspect(log: dict[str, Any], path: Path, folders: tuple[str, ...]) -> Log:
    """Turn the content of a log into rows with scores, and say if the evaluation did not end.

    Args:
        log: the content of its JSON file.
        path: of the file.
        folders: in which it lies, below the folder that the user named.

    Raises:
        ValueError: for a log that is broken.
    """
    evaluation = log["eval"]
    model = str(evaluation.get("model", ""))
    # ``hf/local`` and ``vllm/local`` have the model's path in an argument.
    local = (evaluation.get("model_args") or {}).get("model_path")
    error = (log.get("error") or {}).get("message", "")
    try:
        rows = tuple(_row(sample) for sample in log.get("samples") or [])
    except (KeyError, TypeError, AttributeError) as problem:
        raise broken(path, f"a sample has no {problem}") from problem
    unfinished = ""
    if log["status"] != FINISHED:
        unfinished = f"{log['status']} {error}".strip()
    return Log(
        tool=INSPECT,
        path=path,
        folders=folders,
        model=parts_of(str(local or model)),
        task=str(evaluation.get("task", "")),
        rows=rows,
        unfinished=unfinished,
    )


def _row(sample: dict[str, Any]) -> LogRow:
    """A sample, or its summary, as a row with all scores that are numbers."""
    values: dict[str, Any] = {}
    for scorer, score in (sample.get("scores") or {}).items():
        value = score["value"]
        if isinstance(value, dict):  # a scorer of several scores
            for name, part in value.items():
                values[f"{scorer}/{name}"] = part
        else:
            values[scorer] = value
    scores = {}
    for name, value in values.items():
        number = _as_score(value)
        if number is not None:
            scores[name] = number
    # A sample has the error with its traceback, a summary its message alone.
    error = sample.get("error") or ""
    message = error.get("message", "") if isinstance(error, dict) else str(error)
    return LogRow(
        row=str(sample["id"]),
        scores=scores,
        repeat=int(sample.get("epoch", 1)) - 1,  # Inspect counts from 1
        # The prompt may be what is compared, the target is the row's own.
        content=json.dumps(sample.get("target", "")),
        error=message,
    )


def _as_score(value: Any) -> float | None:
    """A score as a number: a number, a text of one, or a word as Inspect takes it; else None."""
    if not isinstance(value, str):
        return as_number(value)
    if value in SPELLED_SCORES:
        return SPELLED_SCORES[value]
    if value.lower() in SPELLED_SCORES:
        return SPELLED_SCORES[value.lower()]
    try:
        return as_number(float(value))
    except ValueError:
        return None


def _read_member(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    """Read a file in a zip, also one packed with Zstandard; refuse one that unpacks to too much.

    Args:
        archive: the zip.
        path: of the zip, which is opened again for what zipfile cannot unpack.
        name: of the file in it.
    """
    info = archive.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise ValueError(f"{name} has {info.file_size:,} bytes unpacked, more than {MOST_BYTES:,}")
    try:
        with archive.open(info) as member:
            return member.read()  # no more than the size that the zip states
    except NotImplementedError:  # how it is packed is not known to zipfile
        return _unpack_zstandard(path, info)


def _unpack_zstandard(path: Path, info: zipfile.ZipInfo) -> bytes:
    """Unpack a file in a zip as Inspect packs it, and check its size and checksum.

    Python's zipfile does so itself from 3.14 on.

    Raises:
        ValueError: if size or checksum are not those that the zip states.
    """
    import pyarrow

    with path.open("rb") as file:
        # The packed bytes stand behind a header of their own, whose last two numbers say how long
        # the file's name and the extra field behind it are. The zip's index may have others.
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[-4:])
        file.seek(name_length + extra_length, 1)
        packed = file.read(info.compress_size)
    stream = pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd")
    content: bytes = stream.read(info.file_size + 1)  # a byte more would show that it is longer
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise ValueError(f"{info.filename} has another content than the zip states")
    return content
