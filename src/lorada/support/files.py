"""Atomic writes: a file or folder is written whole or not at all, even if the process is killed."""

import json
import math
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRATCH = ".lorada-writing-"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; it is renamed to ``path`` if the block succeeds.

    A folder already at ``path`` is renamed first, so that a reader never sees half of it.
    """
    with scratch_folder(path.parent) as scratch:
        fresh = scratch / path.name
        yield fresh
        if fresh.is_dir() and path.is_dir():
            path.replace(scratch / f"{path.name}.old")
        fresh.replace(path)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def refuse_there(path: Path, *, overwrite: bool) -> None:
    """Refuse a file to write that is there already and not to be replaced, and a folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose another --output")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another --output, or pass --overwrite")


def as_typed(*words: object) -> str:
    """Quote words for a shell."""
    return shlex.join(map(str, words))


def json_text(data: Any) -> str:
    """Data as strict JSON: NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Objects as strict JSON, one a line; NaN and infinity become null."""
    lines = (json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _finite(data: Any) -> Any:
    """The data with None for NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in ``parent``, and ``parent`` too; remove it at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True) as at:
        yield Path(at)


def remove_orphans(folder: Path) -> None:
    """Remove what killed processes were writing anywhere in ``folder``, where no other writes."""
    for scratch in folder.rglob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock, an empty file beside ``path``, while making it; other processes wait for it."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # waiting processes notice it and make a new lock
