"""Lets one process at a time train in a run folder.

The lock ends with its process, even if that is killed. filelock, which other files here use, would
not do: in its older versions the workers of a data loader inherit the lock, so the folder of a
killed process stays locked until they end too, and a lock file that another process holds is
emptied, so that an error could not name that process.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    """
    refuse_file(run)
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    lock = _lock(run, name)
    try:
        yield
    finally:
        (run / name).unlink(missing_ok=True)
        os.close(lock)
        if made:
            with suppress(OSError):  # something was written into it, so it stays
                run.rmdir()


def _lock(run: Path, name: str) -> int:
    path = run / name
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(lock, 20).decode() or "another process"
            os.close(lock)
            raise HeldError(
                f"{run} is being trained by process {owner}: wait for it, or choose another "
                "--output"
            ) from None
        except OSError:
            logger.warning(
                "%s is on a file system without locks: never train there twice at once", run
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)  # the process that held it has just ended and removed the file
    with suppress(OSError):  # the number is only for the error above; a full disk may refuse it
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    return lock
