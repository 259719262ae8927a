"""A run's folder: what it holds, whether a run may write there or go on there, and its lock.

A folder holds a run if it has ``recipe.yaml`` or ``result.json``; with ``result.json`` the run is
complete.

``RUN_FILES`` and ``FILES_BESIDE_RUN`` say what a folder may hold, besides checkpoints. While a run
is trained or a job works on it, a lock file has the number of the process, and what is being
written lies in a folder that begins with ``.lorada-writing-``.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorada.runs.checkpoints import (
    CHECKPOINT,
    last_whole_checkpoint,
    refuse_other_processes,
    refuse_weights_only,
)
from lorada.runs.recipe import AUTO, PATHS, RECIPE_FILE, Recipe, saved_recipe
from lorada.runs.result import PREDICTIONS_FILE, RESULT_FILE, read_result, refuse_no_text
from lorada.support.files import scratch_folder, write_atomic

logger = logging.getLogger(__name__)

LOCK_FILE = ".lorada.lock"
SERVED = ".served"  # holds the export that ``lorada serve`` has written
ROWS_FILE = "rows.sha256"  # a resumed run must have the same training rows
TEMPLATE_FILE = "trained_template.jinja"  # that of ``chat_template=FILE``; no tokenizer's file
# What may lie beside a run that a comparison or a table of the paper has trained.
LOG_FILE = "job.log"
TRIAL_FILE = "trial.json"
BASE_FILE = "as_it_is.json"
KEPT_FILE = "kept.json"
SCALED_FILE = "scaled.json"
# All that a run's folder may hold, beside checkpoints; what another run there must not keep.
RUN_FILES = {
    RECIPE_FILE: "its settings",
    ROWS_FILE: "the fingerprint of its training rows",
    TEMPLATE_FILE: "the template of its chats, if the user gave one",
    "adapter": "what it has trained",
    "model": "the same, where it has trained the base itself",
    "runs": "what TensorBoard shows of it",
    RESULT_FILE: "what it was, what it ran on, and its scores; the run is complete then",
    PREDICTIONS_FILE: "its answers to held-out rows",
    SERVED: "its export for `lorada serve`",
}
# The same of what is written around a training, and may be there before it has begun.
FILES_BESIDE_RUN = {
    LOG_FILE: "what its process has printed",
    TRIAL_FILE: "what it measured as a trial of a search",
    BASE_FILE: "the scores of its model with the adapter switched off",
    KEPT_FILE: "its losses on rows that it should still do",
    SCALED_FILE: "the same of smaller scales of its adapter",
}
# Remote code is allowed command by command, the rows have their own fingerprint, and activations
# that are computed again change no number.
MAY_DIFFER = ("output", "trust_remote_code", "data_dir", "activation_checkpointing")


@dataclass(frozen=True)
class Start:
    """How a run starts."""

    clear: bool = False  # whether to remove an earlier run first
    checkpoint: Path | None = None  # where to continue; None to start from the beginning
    dtype: str | None = None  # that of the base of the run to resume


def check_folder(recipe: Recipe, *, resume: bool, overwrite: bool) -> Start:
    """Decide whether and how a run may start in its output folder; change nothing there.

    Without a whole checkpoint to resume, a warning says that the training starts anew.

    Args:
        recipe: of the run to start.
        resume: whether to go on with the run in the folder.
        overwrite: whether to delete it first.

    Returns:
        How it starts: anew, after clearing the folder, or from a checkpoint.

    Raises:
        ValueError: for a folder that is taken (``refuse_taken``), and, to resume, a run of another
            recipe and a checkpoint without the state of its optimizer or of other processes.
    """
    run = Path(recipe.output)
    refuse_taken(recipe, resume=resume, overwrite=overwrite)
    if not holds_run(run):
        return Start()
    if overwrite:
        return Start(clear=True)
    # From here on the run is resumed: ``refuse_taken`` lets no other pass.
    before = saved_recipe(run / RECIPE_FILE)
    same_recipe(before, recipe)
    checkpoint = last_whole_checkpoint(run)
    if checkpoint is None:
        logger.warning("%s has no whole checkpoint yet: starting from the beginning", run)
        return Start(dtype=before.dtype)
    if recipe.training.get("save_only_model"):
        refuse_weights_only(checkpoint)
    refuse_other_processes(checkpoint)
    return Start(checkpoint=checkpoint, dtype=before.dtype)


def refuse_taken(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that a run may not be written to; the recipe there is not read.

    Raises:
        ValueError: for both options at once, a file in the folder's place, files of a run without a
            recipe, files to delete that the recipe reads, a run without either option, and a
            finished run to resume.
    """
    refuse_both(resume=resume, overwrite=overwrite)
    run = Path(recipe.output)
    refuse_file(run)
    files = run_files(run)
    if not holds_run(run):
        if files:
            raise ValueError(
                f"{run} has {files[0].name} but no {RECIPE_FILE}, so it is not a run: "
                "choose another --output"
            )
        return
    if overwrite:
        _refuse_deleting_inputs(recipe, _files_to_clear(run))
        return
    if not resume:
        raise ValueError(
            f"{run} already holds a run: use --resume, --overwrite or another --output"
        )
    if (run / RESULT_FILE).is_file():
        raise ValueError(f"{run} is complete: evaluate it, or train again with --overwrite")


def _refuse_deleting_inputs(recipe: Recipe, files: list[Path]) -> None:
    """Refuse to delete files and folders that a recipe reads, such as the adapter to start from."""
    deleted = {path.resolve() for path in files}
    for field, path in recipe.local_paths():
        if deleted & {path.resolve(), *path.resolve().parents}:
            raise ValueError(
                f"--overwrite would delete {path}, which is this run's {field}: choose another "
                "--output"
            )


def refuse_both(*, resume: bool, overwrite: bool) -> None:
    """Refuse to go on with what is in a folder and to delete it."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")


def finished_run(folder: Path, *, trust_remote_code: bool = False) -> Recipe:
    """The recipe of a finished run; the caller, not the recipe, decides about remote code.

    Raises:
        ValueError: for a folder without a recipe, and one whose run is not finished.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is not a run: it has no {RECIPE_FILE}")
    read_result(folder)
    return saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)


def refuse_target(folder: Path, target: Path) -> None:
    """Refuse a ``target`` for something made from the run in ``folder``."""
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise ValueError(f"{target} lies in the run itself: choose a folder outside {folder}")
    refuse_filled(target)


def refuse_filled(target: Path) -> None:
    """Refuse a folder to write that is a file, or has something in it."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: choose a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: choose a new folder")


def trains_base(run: Path) -> bool:
    """Whether a finished run has trained the base itself."""
    return (run / "model").exists()


def holds_run(run: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return any((run / name).is_file() for name in (RECIPE_FILE, RESULT_FILE))


def run_files(run: Path) -> list[Path]:
    """The files and subfolders of a folder that have names of a run's files."""
    if not run.is_dir():
        return []
    return [
        path
        for path in sorted(run.iterdir())
        if path.name in RUN_FILES or CHECKPOINT.fullmatch(path.name)
    ]


def begin(recipe: Recipe, start: Start, fingerprint: str) -> None:
    """Clear the folder if ``start`` says so, then write the recipe and the rows' fingerprint.

    A chat template of the user's is copied, so that the run has it wherever it is taken.

    Other rows than those that the run began with are refused.
    """
    run = Path(recipe.output)
    if start.clear:
        clear(run)
    rows_file = run / ROWS_FILE
    before = fingerprint
    if rows_file.is_file():
        before = rows_file.read_text(errors="replace").strip()
    if before != fingerprint:
        where = "" if recipe.data else " (--data-dir)"
        raise ValueError(
            f"{recipe.data or recipe.task} has other rows than this run began with: put them "
            f"back{where}, or start again with --overwrite"
        )
    if recipe.chat_template is not None:
        _copy_template(recipe.chat_template, run / TEMPLATE_FILE)
    recipe.save(run)
    write_atomic(rows_file, fingerprint + "\n")


def _copy_template(source: str, copy: Path) -> None:
    """Copy a chat template into a run; refuse another one than the run began with."""
    template = read_template(source)
    if copy.is_file() and read_template(copy) != template:
        raise ValueError(
            f"chat_template={source} is not the one that this run began with: "
            "put it back, or start again with --overwrite"
        )
    write_atomic(copy, template)


def read_template(path: str | Path) -> str:
    """The text of a file with a chat template.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it cannot be read as a text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"chat_template={path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template={path} cannot be read as text: {error}") from error


def clear(run: Path) -> None:
    """Remove the files of a run and those beside it, and no others; safe to interrupt.

    The result goes first, so that the run no longer counts as complete; the recipe goes last, so
    that no checkpoint is ever beside the recipe of another run.
    """
    order = {RESULT_FILE: 0, ROWS_FILE: 2, RECIPE_FILE: 3}
    paths = sorted(_files_to_clear(run), key=lambda path: order.get(path.name, 1))
    with scratch_folder(run) as scratch:
        for path in paths:
            path.replace(scratch / path.name)


def _files_to_clear(run: Path) -> list[Path]:
    """The files of a run, and those beside it that another run must not keep."""
    files_beside = [run / name for name in FILES_BESIDE_RUN]
    return run_files(run) + [path for path in files_beside if path.exists()]


def same_recipe(before: Recipe, now: Recipe) -> None:
    """Refuse to resume a run with a recipe that differs from its own."""
    for key, old_value, value in differences(before, now):
        raise ValueError(
            f"the run to resume had {key}={old_value!r}, not {value!r}: leave it as it was, "
            "or start again with --overwrite"
        )


def differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two recipes differ, with both values; ``MAY_DIFFER`` are left out."""
    old_settings = before.model_dump()
    for key, value in now.model_dump().items():
        if key not in MAY_DIFFER and not _is_same(key, old_settings[key], value):
            yield key, old_settings[key], value


def _is_same(key: str, old_value: Any, value: Any) -> bool:
    """Whether two values of a setting mean the same, such as two spellings of one path."""
    if key in PATHS and isinstance(old_value, str) and isinstance(value, str):
        return os.path.realpath(old_value) == os.path.realpath(value)
    # The device decides what ``auto`` is, and a resumed run takes what was decided.
    if key == "dtype" and AUTO in (old_value, value):
        return True
    return bool(old_value == value)


class HeldError(ValueError):
    """Another process works in a folder."""


def refuse_file(run: Path) -> None:
    """Refuse a run folder that is a file, or a link to nothing."""
    if run.is_symlink() and not run.exists():
        raise ValueError(f"{run} is a link to nothing: choose another --output")
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file: choose another --output")


@contextmanager
def locked(run: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Keep other trainings out of a run folder in a ``with`` block; make the folder if needed.

    Folders that it has made, and into which nothing was written, are removed. Locks of different
    file names do not exclude each other. A lock ends with its process, even if that is killed.
    On a file system without locks a warning takes the lock's place.

    Raises:
        HeldError: if another process trains there.
        ValueError: if the folder is a file, or a link to nothing.
    """
    refuse_file(run)
    new_folders = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / name
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        with suppress(OSError):  # the number is only for the error below; a full disk may refuse it
            path.write_text(str(os.getpid()))
    except Timeout:
        number = path.read_text() if path.is_file() else ""
        owner = f"process {number}" if number else "another process"
        raise HeldError(
            f"{run} is being trained by {owner}: wait for it, or choose another --output"
        ) from None
    except PermissionError:
        raise
    except (OSError, NotImplementedError):
        logger.warning("%s is on a file system without locks: never train there twice", run)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # waiting processes notice it and make a new lock
        lock.release()
        with suppress(OSError):  # something was written into one of them, so it stays
            for folder in new_folders:
                folder.rmdir()


def writer(folder: Path) -> Recipe:
    """The recipe of a finished run, which must be one that writes text."""
    recipe = finished_run(folder)
    result = read_result(folder)
    refuse_no_text(folder, result.form, result.labels)
    return recipe
