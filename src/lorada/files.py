"""Files and folders that are either there whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a place to write a file or folder; it moves to ``path`` when the block ends well.

    A folder that is already at ``path`` must be removed inside the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        fresh = Path(scratch) / path.name
        yield fresh
        fresh.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
