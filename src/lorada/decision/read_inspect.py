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
    """Read a ``.eval`` file; see ``read_inspect``."""
    # Files in the zip are read by their names and never unpacked, so a path in it leads nowhere.
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if HEADER in names:
                header = json.loads(_member(archive, path, HEADER))
            else:
                header = {"status": "started", **json.loads(_member(archive, path, START))}
            if SUMMARIES in names:
                samples = json.loads(_member(archive, path, SUMMARIES))
            else:
                samples = [
                    json.loads(_member(archive, path, name))
                    for name in names
                    if name.startswith(SAMPLES) and name.endswith(".json")
                ]
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError,
            KeyError, ValueError) as error:  # fmt: skip
        raise broken(path, error) from error
    if not is_inspect(header) or not isinstance(samples, list):
        raise broken(path, "it is no log of Inspect")
    return read_inspect({**header, "samples": samples}, path, folders)


def read_inspect(log: dict[str, Any], path: Path, folders: tuple[str, ...]) -> Log:
    """Read the samples of a log.

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
    return Log(
        tool=INSPECT,
        path=path,
        folders=folders,
        model=parts_of(str(local or model)),
        task=str(evaluation.get("task", "")),
        rows=rows,
        unfinished="" if log["status"] == FINISHED else f"{log['status']} {error}".strip(),
    )


def _row(sample: dict[str, Any]) -> LogRow:
    """A sample, or its summary, as a row."""
    scores: dict[str, float] = {}
    for scorer, score in (sample.get("scores") or {}).items():
        value = score["value"]
        if isinstance(value, dict):  # a scorer of several scores
            named = {f"{scorer}/{name}": part for name, part in value.items()}
        else:
            named = {scorer: value}
        for name, part in named.items():
            number = _as_score(part)
            if number is not None:
                scores[name] = number
    error = sample.get("error") or ""
    message = error.get("message", "") if isinstance(error, dict) else str(error)
    return LogRow(
        row=str(sample["id"]),
        scores=scores,
        repeat=int(sample.get("epoch", 1)) - 1,
        # The prompt may be what is compared, the target is the row's own.
        content=json.dumps(sample.get("target", "")),
        error=message,
    )


def _as_score(value: Any) -> float | None:
    """A score as a number, as Inspect's accuracy takes it; None for another word."""
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


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    """The unpacked content of a file in a zip."""
    info = archive.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise ValueError(f"{name} has {info.file_size:,} bytes unpacked, more than {MOST_BYTES:,}")
    try:
        with archive.open(info) as member:
            return member.read()  # no more than the size that the zip states
    except NotImplementedError:
        return _unpacked_zstandard(path, info)


def _unpacked_zstandard(path: Path, info: zipfile.ZipInfo) -> bytes:
    """A file in a zip as Inspect packs it; zipfile unpacks it from Python 3.14 on."""
    import pyarrow

    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[-4:])
        file.seek(name_length + extra_length, 1)
        packed = file.read(info.compress_size)
    stream = pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd")
    content: bytes = stream.read(info.file_size + 1)
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise ValueError(f"{info.filename} has another content than the zip states")
    return content
