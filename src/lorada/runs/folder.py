"""Decides whether a run may write to its folder or continue there, and which runs answer together.

A folder holds a run if it has ``recipe.yaml`` or ``result.json``; with ``result.json`` the run is
complete. A checkpoint is whole if it has its last file, ``trainer_state.json``.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from lorada.runs.recipe import AUTO, PATHS, RECIPE_FILE, Recipe, saved_recipe
from lorada.runs.result import PREDICTIONS_FILE, RESULT_FILE, read_result, refuse_no_text
from lorada.support.files import scratch_folder, write_atomic
from lorada.support.processes import process_count

logger = logging.getLogger(__name__)

LOCK_FILE = ".lorada.lock"
SERVED = ".served"  # holds the export that ``lorada serve`` has written
ROWS_FILE = "rows.sha256"  # a resumed run must have the same training rows
TEMPLATE_FILE = "trained_template.jinja"  # that of ``chat_template=FILE``; no tokenizer's file
# What may lie beside a run that a comparison or a table of the paper has trained.
LOG_FILE = "job.log"
TRIAL_FILE = "trial.json"
BASE_FILE = "as_it_is.json"
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
    """Decide whether and how a run may start in its output folder; change nothing there."""
    run = Path(recipe.output)
    refuse_taken(recipe, resume=resume, overwrite=overwrite)
    if not holds_run(run):
        return Start()
    if overwrite:
        return Start(clear=True)
    before = saved_recipe(run / RECIPE_FILE)
    same_recipe(before, recipe)
    checkpoint = last_whole_checkpoint(run)
    if checkpoint is None:
        logger.warning("%s has no whole checkpoint yet: starting from the beginning", run)
    else:
        if recipe.training.get("save_only_model"):
            refuse_weights_only(checkpoint)
        # If several processes wrote it, each has saved its own random state.
        processes = len(list(checkpoint.glob("rng_state_*.pth"))) or 1
        if any(checkpoint.glob("rng_state*")) and processes != process_count():
            raise ValueError(
                f"{checkpoint} was saved by {processes}, not {process_count()} process(es): start "
                "as many, or start again with --overwrite"
            )
    return Start(checkpoint=checkpoint, dtype=before.dtype)


def refuse_taken(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that a run may not be written to; the recipe there is not read."""
    refuse_both(resume=resume, overwrite=overwrite)
    run = Path(recipe.output)
    refuse_file(run)
    found = run_files(run)
    if not holds_run(run):
        if found:
            raise ValueError(
                f"{run} has {found[0].name} but no {RECIPE_FILE}, so it is not a run: "
                "choose another --output"
            )
    elif overwrite:
        deleted = {path.resolve() for path in _files_to_clear(run)}
        for name, path in recipe.local_paths():
            if deleted & {path.resolve(), *path.resolve().parents}:
                raise ValueError(
                    f"--overwrite would delete {path}, which is this run's {name}: choose another "
                    "--output"
                )
    elif not resume:
        raise ValueError(
            f"{run} already holds a run: use --resume, --overwrite or another --output"
        )
    elif (run / RESULT_FILE).is_file():
        raise ValueError(f"{run} is complete: evaluate it, or train again with --overwrite")


def refuse_both(*, resume: bool, overwrite: bool) -> None:
    """Refuse to go on with what is in a folder and to delete it."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")


def finished_run(folder: Path, *, trust_remote_code: bool = False) -> Recipe:
    """The recipe of a finished run; the caller, not the recipe, decides about remote code."""
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
    """
    run = Path(recipe.output)
    if start.clear:
        clear(run)
    rows = run / ROWS_FILE
    before = rows.read_text(errors="replace").strip() if rows.is_file() else fingerprint
    if before != fingerprint:
        where = "" if recipe.data else " (--data-dir)"
        raise ValueError(
            f"{recipe.data or recipe.task} has other rows than this run began with: put them "
            f"back{where}, or start again with --overwrite"
        )
    if recipe.chat_template is not None:
        template = read_template(recipe.chat_template)
        copy = run / TEMPLATE_FILE
        if copy.is_file() and read_template(copy) != template:
            raise ValueError(
                f"chat_template={recipe.chat_template} is not the one that this run began with: "
                "put it back, or start again with --overwrite"
            )
        write_atomic(copy, template)
    recipe.save(run)
    write_atomic(rows, fingerprint + "\n")


def read_template(path: str | Path) -> str:
    """The text of a file with a chat template."""
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
    for key, old, value in differences(before, now):
        raise ValueError(
            f"the run to resume had {key}={old!r}, not {value!r}: leave it as it was, "
            "or start again with --overwrite"
        )


def differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two recipes differ, with both values; ``MAY_DIFFER`` are left out."""
    old = before.model_dump()
    for key, value in now.model_dump().items():
        if key not in MAY_DIFFER and not _same(key, old[key], value):
            yield key, old[key], value


def _same(key: str, old: Any, value: Any) -> bool:
    """Whether two values of a setting mean the same, such as two spellings of one path."""
    if key in PATHS and isinstance(old, str) and isinstance(value, str):
        return os.path.realpath(old) == os.path.realpath(value)
    return bool(old == value) or (key == "dtype" and AUTO in (old, value))


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
    ``HeldError``: another process trains there.
    """
    refuse_file(run)
    made, path = [one for one in (run, *run.parents) if not one.exists()], run / name
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        with suppress(OSError):  # the number is only for the error below; a full disk may refuse it
            path.write_text(str(os.getpid()))
    except Timeout:
        owner = path.read_text() if path.is_file() else ""
        raise HeldError(
            f"{run} is being trained by {f'process {owner}' if owner else 'another process'}: wait "
            "for it, or choose another --output"
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
            for one in made:
                one.rmdir()


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"  # the Trainer writes it last


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The steps and paths of a run's checkpoints, newest first."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def last_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; a warning names each newer one."""
    for _, path in checkpoints(run):
        if (problem := _problem(path)) is None:
            return path
        logger.warning("%s %s: going back to an earlier one", path, problem)
    return None


def _problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it was written up to its last file, and none is cut.

    Weights are not read for this.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if not isinstance(state["global_step"], int):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError):
        return "was not written to its end"
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):  # whose header says how long the file is
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):  # torch's archives, listed at their end
                ZipFile(path).close()
        except (ValueError, SafetensorError, BadZipFile) as error:
            return f"is damaged ({path.name}: {error})"
    return None


def refuse_weights_only(checkpoint: Path) -> None:
    """Refuse a checkpoint of ``save_only_model=true`` from which training would have to go on."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    resumable = any(checkpoint.glob("rng_state*.pth"))  # saved with any kind of optimizer
    if not resumable and state["global_step"] < state["max_steps"]:
        raise ValueError(
            f"{checkpoint} has weights without an optimizer, as training.save_only_model=true asks "
            "for, so the run cannot go on as it was: start again with --overwrite"
        )


def writer(folder: Path) -> Recipe:
    """The recipe of a finished run, which must be one that writes text."""
    recipe, result = finished_run(folder), read_result(folder)
    refuse_no_text(folder, result.form, result.labels)
    return recipe
