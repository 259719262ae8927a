"""The checkpoints of a run: which there are, and the newest from which training can go on.

A checkpoint is whole if it has its last file, ``trainer_state.json``, and no file of it is cut.
"""

import json
import logging
import re
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from lorada.support.processes import process_count

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"  # the Trainer writes it last


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The steps and paths of a run's checkpoints, newest first."""
    steps_and_paths = []
    for path in run.glob("checkpoint-*"):
        match = CHECKPOINT.fullmatch(path.name)
        if match:
            steps_and_paths.append((int(match[1]), path))
    return sorted(steps_and_paths, reverse=True)


def last_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; a warning names each newer one."""
    for _, path in checkpoints(run):
        problem = _problem_with(path)
        if problem is None:
            return path
        logger.warning("%s %s: going back to an earlier one", path, problem)
    return None


def _problem_with(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words that follow its path; None if it is whole.

    Whole: written up to its last file, and no file of it is cut. Weights are not read for this.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if not isinstance(state["global_step"], int):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError):
        return "was not written to its end"
    for path in sorted(checkpoint.iterdir()):
        try:
            _open_to_check(path)
        except (ValueError, SafetensorError, BadZipFile) as error:
            return f"is damaged ({path.name}: {error})"
    return None


def _open_to_check(path: Path) -> None:
    """Read as much of a file as shows whether it is cut; other kinds of files are not read."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt"):  # whose header says how long the file is
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):  # torch's archives, listed at their end
        ZipFile(path).close()


def refuse_other_processes(checkpoint: Path) -> None:
    """Refuse a checkpoint that another number of processes has saved.

    Each has saved its own random state, without which the run would not go on as it was.

    Raises:
        ValueError: with both numbers.
    """
    if not any(checkpoint.glob("rng_state*")):  # weights alone have no random state
        return
    # The Trainer names them rng_state_0.pth, rng_state_1.pth, …, and that of one process
    # rng_state.pth.
    saved_by = len(list(checkpoint.glob("rng_state_*.pth"))) or 1
    if saved_by != process_count():
        raise ValueError(
            f"{checkpoint} was saved by {saved_by}, not {process_count()} process(es): start "
            "as many, or start again with --overwrite"
        )


def refuse_weights_only(checkpoint: Path) -> None:
    """Refuse a checkpoint of ``save_only_model=true`` from which training would have to go on.

    One at the last step is not refused: only its weights are needed to finish the run.

    Raises:
        ValueError: if steps are left and the optimizer was not saved.
    """
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    resumable = any(checkpoint.glob("rng_state*.pth"))  # saved with any kind of optimizer
    if not resumable and state["global_step"] < state["max_steps"]:
        raise ValueError(
            f"{checkpoint} has weights without an optimizer, as training.save_only_model=true asks "
            "for, so the run cannot go on as it was: start again with --overwrite"
        )
