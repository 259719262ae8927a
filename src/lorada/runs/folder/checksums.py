"""The checksums of a checkpoint, by which damage to any of its files is noticed before it is read.

They stand in ``files.sha256``, in the form of the program sha256sum, and are written last. What a
library makes of a damaged file is anything: an error of its own, or another number in a weight.
"""

import hashlib
from pathlib import Path

from lorada.support.files import SCRATCH, write_whole

SEAL_FILE = "files.sha256"


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint holds."""
    lines = [f"{_sum(checkpoint / name)}  {name}\n" for name in _files(checkpoint)]
    write_whole(checkpoint / SEAL_FILE, "".join(lines))


def is_sealed(checkpoint: Path) -> bool:
    """Whether its checksums are there: not if the process ended just before, or lorada is older."""
    return (checkpoint / SEAL_FILE).is_file()


def broken_seal(checkpoint: Path) -> str | None:
    """The file of a checkpoint that is not what was written; None if all are, or nobody knows."""
    if not is_sealed(checkpoint):
        return None
    found = set(_files(checkpoint))
    text = (checkpoint / SEAL_FILE).read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        expected, _, name = line.partition("  ")
        if not name or name not in found or _sum(checkpoint / name) != expected:
            return name or SEAL_FILE
        found.remove(name)
    return min(found) if found else None


def _files(checkpoint: Path) -> list[str]:
    """The files of a checkpoint, without what a process that was killed here was about to write."""
    paths = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    done = (path for path in paths if not path.parts[0].startswith(SCRATCH))
    return sorted(path.as_posix() for path in done if path.as_posix() != SEAL_FILE)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
