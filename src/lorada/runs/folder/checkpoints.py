"""Finds the checkpoints of a run, and tells whether they were written to their end."""

import json
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"  # the Trainer writes it last


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The steps and paths of a run's checkpoints, newest first."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a warning names each newer one."""
    for _, path in checkpoints(run):
        if is_whole(path):
            return path
        logger.warning("%s was not written to its end: going back to an earlier one", path)
    return None


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: if several did, each saved its own random state."""
    return len(list(checkpoint.glob("rng_state_*.pth"))) or 1


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written up to its last file, the state."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        return isinstance(state["global_step"], int)
    except (OSError, ValueError, TypeError, KeyError):
        return False
