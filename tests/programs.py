"""Programs that tests run in processes of their own."""

import os
import subprocess
from pathlib import Path


def printed(*command: object, folder: Path | None = None, **environment: str) -> str:
    """What a program prints that has to end well."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
