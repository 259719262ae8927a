"""Finds the checkpoints of a run, and checks that they are complete and undamaged.

``files.sha256`` in a checkpoint has the checksums of its files, in the format of ``sha256sum``. It
is written last. Files are checked before they are read, because a library may read a damaged file
without an error and get another number in a weight.
"""

import hashlib
import json
import logging
import re
from pathlib import Path

from lorada.support.files import SCRATCH, write_atomic

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
CHECKSUM_FILE = "files.sha256"
STATE_FILE = "trainer_state.json"  # the Trainer writes it last


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The steps and paths of a run's checkpoints, newest first."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole and undamaged; a warning names each newer one."""
    for _, path in checkpoints(run):
        if damaged := damaged_file(path):
            logger.warning("%s is damaged: going back to an earlier checkpoint", path / damaged)
        elif not (has_checksums(path) or _is_whole(path)):
            logger.warning("%s was not written to its end: going back to an earlier one", path)
        else:
            return path
    return None


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: if several did, each saved its own random state."""
    return len(list(checkpoint.glob("rng_state_*.pth"))) or 1


def refuse_weights_only(checkpoint: Path) -> None:
    """Refuse a checkpoint of ``save_only_model=true`` from which training would have to go on."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    resumable = any(checkpoint.glob("rng_state*.pth"))  # saved with any kind of optimizer
    if not resumable and state["global_step"] < state["max_steps"]:
        raise ValueError(
            f"{checkpoint} has weights without an optimizer, as training.save_only_model=true asks "
            "for, so the run cannot go on as it was: start again with --overwrite"
        )


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint without checksums was written up to its last file, the state."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        return isinstance(state["global_step"], int)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files into it."""
    lines = [f"{_sum(checkpoint / name)}  {name}\n" for name in _files(checkpoint)]
    write_atomic(checkpoint / CHECKSUM_FILE, "".join(lines))


def has_checksums(checkpoint: Path) -> bool:
    """Whether a checkpoint has checksums; it lacks them if its process ended too early."""
    return (checkpoint / CHECKSUM_FILE).is_file()


def damaged_file(checkpoint: Path) -> str | None:
    """A file of a checkpoint that has changed; None if none has, or there are no checksums."""
    if not has_checksums(checkpoint):
        return None
    found = set(_files(checkpoint))
    text = (checkpoint / CHECKSUM_FILE).read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        expected, _, name = line.partition("  ")
        if not name or name not in found or _sum(checkpoint / name) != expected:
            return name or CHECKSUM_FILE
        found.remove(name)
    return min(found) if found else None


def _files(checkpoint: Path) -> list[str]:
    """The files of a checkpoint, without the half-written ones of a killed process."""
    paths = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    done = (path for path in paths if not path.parts[0].startswith(SCRATCH))
    return sorted(path.as_posix() for path in done if path.as_posix() != CHECKSUM_FILE)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
