"""Helpers for one-line errors with the value and the remedy."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_NAMES = 12  # that an error lists


def unknown_name(kind: str, value: str, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` for an unknown name, with the nearest known names or a list of them."""
    names = sorted(known)
    similar_names = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if similar_names:
        hint = f"did you mean {' or '.join(similar_names)}?"
    else:
        hint = f"known: {', '.join(names[:MOST_NAMES])}"
        if len(names) > MOST_NAMES:
            hint += f" and {len(names) - MOST_NAMES} more"
    return ValueError(f"unknown {kind} {value!r}; {hint}")


def first_problem(error: Any, depth: int | None = None) -> tuple[str, str]:
    """Where the first value that pydantic refuses stands, and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][:depth]))
    # Of a record pydantic says "a valid dictionary or instance of RunResult".
    wrong = first["msg"].lower().partition(" or instance of ")[0]
    return where, wrong


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import of an optional package into an error that names the extra to install.

    Raises:
        ImportError: with the extra, in place of the import's own.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error.name or error} is missing: install the extra `{extra}` "
            f"(pip install -e '.[{extra}]' in a checkout of lorada)"  # it is on no package index
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, of the machine or the accelerator."""
    # torch raises a RuntimeError, which only its text tells from others.
    phrases = ("out of memory", "can't allocate", "not enough memory")
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in phrases)


# What helps where memory runs out, by what was being done.
TRAINING = (
    "take a smaller training.per_device_train_batch_size, max_length or rank, or "
    "activation_checkpointing=full"
)
MEASURING = "take a smaller training.per_device_eval_batch_size or max_length"
SCORING = "take a smaller eval_batch_size (of a finished run, in its recipe.yaml)"
LOADING = (
    "the model does not fit: take quantization=nf4, or device_map=auto for several GPUs "
    "(of a finished run, in its recipe.yaml)"
)
EXPLAINING = "give a shorter text"


@contextmanager
def memory_remedy(remedy: str) -> Iterator[None]:
    """Note what helps if memory runs out in a ``with`` block; of nested blocks the inner one's."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            error.__dict__.setdefault("lorada_remedy", remedy)
        raise


def out_of_memory_line(error: BaseException) -> str:
    """The line that says that memory ran out, and what helps."""
    remedy = error.__dict__.get("lorada_remedy", TRAINING)
    library_message = " ".join(str(error).split())
    return f"out of memory: {remedy} ({library_message[:80]})"


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Texts in errors of torch's own writer, which have no number.
TORCH_WRITER = ("inline_container.cc", "iostream error", "PytorchStreamWriter")


# What helps on a full disk where what was saved can be gone on with.
FREE_AND_RESUME = (
    "What was saved before is whole: free space, then run the command again with --resume"
)


@contextmanager
def full_disk_in_one_line(what: Path | str, remedy: str) -> Iterator[None]:
    """Turn the error of a full disk, of any library, into an ``OSError`` of one line.

    Raises:
        OSError: with what could not be saved, and the remedy; other errors pass.
    """
    try:
        yield
    except Exception as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        raise OSError(f"could not save {what}: {reason}. {remedy}") from error


def _full_disk(error: Exception) -> str | None:
    """The reason for a failed write if the disk is full, else None."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        file = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{file}"
    # Errors of safetensors and tokenizers, which are Rust, have the number in their text only.
    if any(f"(os error {number})" in text for number in NO_SPACE):
        return text.removeprefix("Error while serializing: ").removeprefix("I/O error: ")
    if isinstance(error, RuntimeError) and any(phrase in text for phrase in TORCH_WRITER):
        return f"a write failed, most likely on a full disk ({text.rpartition('] . ')[2]})"
    return None
