"""Lets one process at a time work in a folder; the lock ends with its process, even if killed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK_FILE = ".lorada.lock"


class HeldError(ValueError):
    """Another process works in a folder."""


def refuse_file(run: Path) -> None:
    """Refuse a run folder that is a file."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file: choose another --output")


@contextmanager
def locked(run: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Keep other trainings out of a run folder in a ``with`` block; make the folder if needed.

    Locks of different file names do not exclude each other.

    Raises:
        HeldError: if another process trains there.
    """
    refuse_file(run)
    made, path = not run.exists(), run / name
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        with suppress(OSError):  # the number is only for the error below; a full disk may refuse it
            path.write_text(str(os.getpid()))
    except Timeout:
        owner = path.read_text() if path.is_file() else ""
        raise HeldError(
            f"{run} is being trained by {f'process {owner}' if owner else 'another process'}: wait "
            "for it, or choose another --output"
        ) from None
    except (OSError, NotImplementedError):
        logger.warning("%s is on a file system without locks: never train there twice", run)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # waiting processes notice it and make a new lock
        lock.release()
        if made:
            with suppress(OSError):  # something was written into it, so it stays
                run.rmdir()
