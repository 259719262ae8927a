"""Programs that tests run in processes of their own, commands of pages, and waiting."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def printed(*command: object, folder: Path | None = None, **environment: str) -> str:
    """What a program prints that has to end well."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commands(text: str, start: str = "lorada") -> Iterator[list[str]]:
    """The commands of a text that begin so, as words; a backslash continues a line."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(f"{start} "):
            yield shlex.split(line, comments=True)


def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait until ``true()``, at most so long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
