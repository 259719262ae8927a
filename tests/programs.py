"""Programs that tests run in processes of their own, and waiting for others."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def printed(*command: object, folder: Path | None = None, **environment: str) -> str:
    """What a program prints that has to end well."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until ``true()``, at most so long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
