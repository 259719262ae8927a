"""Atomic writes: a file or folder is written whole or not at all, even if the process is killed."""

import fcntl
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
    """The data as JSON gives it back, with None for NaN and infinity."""
    return json.loads(json.dumps(data), parse_constant=lambda _: None)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in ``parent`` and remove it at the end.

    The process holds a lock on it. Temporary folders without a lock were left by killed processes
    and are removed first.
    """
    # The lock is on the folder itself, which filelock has none for: it locks files, so that others
    # would have to write into the folder to see whether its owner is alive; and where there are no
    # locks it leaves marks that outlive a killed process.
    parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new temporary folder, and the open lock on it, which its owner has to close."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks never removes orphans either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)
        # Before it was locked, another process removed it as an orphan: try again.


def _remove_orphans(parent: Path) -> None:
    """Remove the temporary folders in ``parent`` that killed processes have left."""
    for folder in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # its owner is alive, or has removed it
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock while making or changing ``path``; other processes wait for it.

    One that has waited checks again inside whether ``path`` is made. The lock is a file beside it.
    On a file system without ``flock`` (ENOSYS) that file's existence is the lock; if locking fails
    otherwise, nobody waits.
    """
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                Path(lock.lock_file).unlink()  # waiting processes notice it and make a new lock
            lock.release()
