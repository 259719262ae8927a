"""Copies a job's folder to a machine that does not share it, and its files back.

Paths are the same on both machines; only the disks differ. The caller's folder holds a token
while the job is not done, and so does the folder on the other machine. If a job is started there
again with the same token, it goes on with what is there, such as its checkpoints. With another
token, what is there belongs to an earlier job and is removed.
"""

import json
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

from lorada.runs.folder.checkpoints import CHECKPOINT
from lorada.support.files import SCRATCH, scratch_folder, write_atomic

CALLER = ".lorada.caller"  # the token in the caller's folder
COPY = ".lorada.copy"  # the token in a folder on another machine, and what was sent there
OWN = (CALLER, COPY, ".lorada.lock", ".lorada.job")
SENT = ".lorada-sent"  # ends the name of an empty file beside a copy of a file that a job reads


@dataclass(frozen=True)
class File:
    """A file on its way to another machine.

    Attributes:
        name: its path in the folder, with slashes.
        content: its bytes.
    """

    name: str
    content: bytes


def token_of(folder: Path) -> str:
    """The token of a job's folder; a new one is written if it has none."""
    path = folder / CALLER
    if not path.is_file():
        write_atomic(path, uuid.uuid4().hex)
    return path.read_text()


def files_in(folder: Path) -> list[File]:
    """The files of a folder without checkpoints, in the order in which they were written."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and _is_sent(path.relative_to(folder))
    ]
    found.sort(key=lambda path: path.stat().st_mtime_ns)
    return [File(path.relative_to(folder).as_posix(), path.read_bytes()) for path in found]


def _is_sent(path: Path) -> bool:
    return path.name not in OWN and not any(
        CHECKPOINT.fullmatch(part) or part.startswith(SCRATCH) for part in path.parts
    )


def make_copy(folder: Path, token: str, files: Iterable[File]) -> None:
    """Make a job's folder on this machine from the caller's files, or keep one with its token.

    Raises:
        ValueError: if this machine has a folder there that is no copy.
    """
    mark = folder / COPY
    if mark.is_file():
        if json.loads(mark.read_text())["token"] == token:
            return
        shutil.rmtree(folder)
    elif any(path.is_file() for path in folder.rglob("*")) and not any(folder.rglob(COPY)):
        raise ValueError(f"there is another {folder}: remove it there, or choose another --output")
    write_files(folder, files)
    write_atomic(mark, json.dumps({"token": token, "sent": _stamps(folder)}))


def changed_files(folder: Path) -> list[File]:
    """The files of a copy that the job has written, in their order."""
    sent, now = json.loads((folder / COPY).read_text())["sent"], _stamps(folder)
    return [file for file in files_in(folder) if sent.get(file.name) != now[file.name]]


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Time and size of each file, which say whether it was written again."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*")}
    return {name: [stat.st_mtime_ns, stat.st_size] for name, stat in stats.items()}


def write_files(folder: Path, files: Iterable[File]) -> None:
    """Write files into a folder, in their order; a subfolder that is new appears as a whole.

    Nothing is seen there before all of them are written.

    Raises:
        ValueError: for a name that leads out of the folder; nothing is written then.
    """
    files = list(files)
    for file in files:
        parts = PurePosixPath(file.name).parts
        inside = (folder / file.name).resolve().is_relative_to(folder.resolve())
        if not parts or ".." in parts or not inside:
            raise ValueError(f"{file.name!r} from another machine leads out of {folder}: not kept")
    with scratch_folder(folder) as scratch:
        for file in files:
            path = scratch / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
        whole: dict[Path, None] = {}
        for file in files:
            steps = accumulate(PurePosixPath(file.name).parts, lambda a, b: f"{a}/{b}")
            unit = next(Path(step) for step in steps if not (folder / step).is_dir())
            whole.pop(unit, None)  # a folder takes the place of its last file
            whole[unit] = None
        for unit in whole:
            (scratch / unit).replace(folder / unit)


def write_sent(path: Path, content: bytes) -> None:
    """Write a copy of a file that a job reads, unless the same file is there.

    Raises:
        ValueError: if another file is there that is no copy.
    """
    mark = path.with_name(f".{path.name}{SENT}")
    if path.is_file():
        if path.read_bytes() == content:
            return
        if not mark.exists():
            raise ValueError(f"there is another {path}: make them equal, or remove it there")
    path.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    write_files(path.parent, [File(path.name, content)])
