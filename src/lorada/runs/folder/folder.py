"""What a run folder holds: who may write there, what is removed, where to continue.

A folder holds a run if it has ``recipe.yaml`` or ``result.json``. It is complete with a
``result.json``. One process at a time trains in it. Nothing that a run did not write is ever
removed.
"""

import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorada.runs.folder.checksums import broken_seal, is_sealed
from lorada.runs.folder.result import RESULT_FILE
from lorada.runs.recipe import PATHS, RECIPE_FILE, Recipe, saved_recipe
from lorada.support.files import scratch_folder, write_whole
from lorada.support.processes import count

logger = logging.getLogger(__name__)

ROWS_FILE = "rows.sha256"  # what the run was trained on, so that a resumed run has the same
RUN_FILES = (RECIPE_FILE, RESULT_FILE, ROWS_FILE, "loss.png", "adapter", "model", "runs")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# The Trainer writes trainer_state.json last, and removes older checkpoints only after it.
CHECKPOINT_FILES = ("trainer_state.json", "scheduler.pt")
# What FSDP writes: each state in one file, or a folder of shares whose list of contents comes last.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
SHARES = ("optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata")


@dataclass(frozen=True)
class Start:
    """How a run begins: from nothing, over an earlier run, or from a checkpoint."""

    clear: bool = False
    checkpoint: Path | None = None


def check_folder(recipe: Recipe, *, resume: bool, overwrite: bool) -> Start:
    """Decide whether a run may be written to its output folder; change nothing there.

    Raises:
        ValueError: if the folder holds a run and neither resume nor overwrite was asked for, if
            it holds things of the same names that are not a run's, or if the run to resume is
            complete or had another recipe.
    """
    run = Path(recipe.output)
    refuse_taken(run, recipe.from_adapter, resume=resume, overwrite=overwrite)
    if not holds_run(run):
        return Start()
    if overwrite:
        return Start(clear=True)
    same_recipe(saved_recipe(run / RECIPE_FILE), recipe)
    checkpoint = last_whole_checkpoint(run)
    if checkpoint is None:
        logger.warning("%s has no whole checkpoint yet: starting from the beginning", run)
    elif (before := processes_of(checkpoint)) != count():
        raise ValueError(
            f"{checkpoint} was saved by {before}, not {count()} process(es): start as many, or "
            "start again with --overwrite"
        )
    return Start(checkpoint=checkpoint)


def refuse_taken(run: Path, start_from: str | None, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder to which a run may not be written, whatever else its recipe says.

    Raises:
        ValueError: as ``check_folder``, but for the recipe of the run to resume.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    found = run_files(run)
    if not holds_run(run):
        if found:
            raise ValueError(
                f"{run} has {found[0].name} but no {RECIPE_FILE}, so it is not a run: "
                "choose another --output"
            )
    elif overwrite:
        source = Path(start_from).resolve() if start_from else None
        if source is not None and run.resolve() in (source, *source.parents):
            raise ValueError(f"--overwrite would delete {start_from}, which --from reads")
    elif not resume:
        raise ValueError(
            f"{run} already holds a run: use --resume, --overwrite or another --output"
        )
    elif (run / RESULT_FILE).is_file():
        raise ValueError(f"{run} is complete: evaluate it, or train again with --overwrite")


def refuse_target(folder: Path, target: Path) -> None:
    """Refuse a place to which what is made of a run may not be written.

    Raises:
        ValueError: if it is in the run, or not a new or empty folder.
    """
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise ValueError(f"{target} lies in the run itself: choose a folder outside {folder}")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: choose a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: choose a new folder")


def holds_run(run: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return any((run / name).is_file() for name in (RECIPE_FILE, RESULT_FILE))


def run_files(run: Path) -> list[Path]:
    """Everything in a folder that bears the name of something a run writes."""
    if not run.is_dir():
        return []
    return [p for p in sorted(run.iterdir()) if p.name in RUN_FILES or CHECKPOINT.fullmatch(p.name)]


def begin(recipe: Recipe, start: Start, fingerprint: str) -> None:
    """Remove an earlier run if that was asked for, and write down what this one is.

    Raises:
        ValueError: if the rows are not those that the run to resume began with, or nobody can tell.
    """
    run = Path(recipe.output)
    if start.clear:
        clear(run)
    rows = run / ROWS_FILE
    before = rows.read_text(errors="replace").strip() if rows.is_file() else fingerprint
    if not FINGERPRINT.fullmatch(before):
        raise ValueError(
            f"{rows} is damaged, so whether the rows are those that this run began with cannot be "
            "told: delete it if you know that they are, or start again with --overwrite"
        )
    if before != fingerprint:
        raise ValueError(
            f"{recipe.data} is not what this run began with: put the rows back, or start again "
            "with --overwrite"
        )
    recipe.save(run)
    write_whole(rows, fingerprint + "\n")


def clear(run: Path) -> None:
    """Take an earlier run out of its folder, so that what is left at any moment is a run.

    Without its result it is one that is not complete; its recipe goes last, so that no checkpoint
    is ever found beside the recipe of another run.
    """
    order = {RESULT_FILE: 0, ROWS_FILE: 2, RECIPE_FILE: 3}
    with scratch_folder(run) as scratch:
        for path in sorted(run_files(run), key=lambda path: order.get(path.name, 1)):
            path.replace(scratch / path.name)


def same_recipe(before: Recipe, now: Recipe) -> None:
    """Refuse to go on with another recipe than a run began with.

    Raises:
        ValueError: for the first setting that differs.
    """
    for key, old, value in differences(before, now):
        raise ValueError(
            f"the run to resume had {key}={old!r}, not {value!r}: leave it as it was, "
            "or start again with --overwrite"
        )


def differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two recipes differ that say what a run is, with both values."""
    old = before.model_dump()
    for key, value in now.model_dump().items():
        # Whether foreign code may run is asked anew each time; rows have a fingerprint of theirs.
        if key not in ("output", "trust_remote_code", "data_dir") and not _same(
            key, old[key], value
        ):
            yield key, old[key], value


def _same(key: str, old: Any, value: Any) -> bool:
    """Whether two values of a setting are one: a path is, however it is written."""
    if key in PATHS and isinstance(old, str) and isinstance(value, str):
        return os.path.realpath(old) == os.path.realpath(value)
    return bool(old == value)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run by their step, newest first."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is as it was written, to its end; those that are not are named."""
    for _, path in checkpoints(run):
        if damaged := broken_seal(path):
            logger.warning("%s is damaged: going back to an earlier checkpoint", path / damaged)
        elif not (is_sealed(path) or _is_whole(path)):
            logger.warning("%s was not written to its end: going back to an earlier one", path)
        else:
            return path
    return None


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: of several, each keeps its random numbers."""
    return len(list(checkpoint.glob("rng_state_*.pth"))) or 1


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in CHECKPOINT_FILES):
        return False
    weights, draws = list(checkpoint.glob("*.safetensors")), list(checkpoint.glob("rng_state*.pth"))
    optimizers = [checkpoint / name for name in OPTIMIZERS if (checkpoint / name).is_file()]
    shared = all((checkpoint / name).is_file() for name in SHARES)
    if not draws or not (shared or (weights and optimizers)):
        return False
    states = [*draws, *optimizers, *checkpoint.glob("pytorch_model_fsdp.bin")]
    if not all(map(_whole_archive, [*states, checkpoint / "scheduler.pt"])):
        return False
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not all(isinstance(state.get(name), int) for name in ("global_step", "max_steps")):
            return False
        for path in weights:
            with safe_open(path, "pt"):  # checks the header against the size of the file
                pass
    except (ValueError, AttributeError, SafetensorError):
        return False
    return True


def _whole_archive(path: Path) -> bool:
    """Whether what torch wrote reads to its end, by the checksums that it put in."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of whatever kind: a damaged archive may say that it is encrypted
        return False
