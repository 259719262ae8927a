"""Helpers for errors that a user can act on: the value, the remedy, in one line."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MOST = 12  # names that an error lists


def unknown(kind: str, value: str, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` that names the nearest known names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    shown = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if names[MOST:] else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {shown}"
    return ValueError(f"unknown {kind} {value!r}; {hint}")


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Name the extra to install where an optional package cannot be imported.

    Raises:
        ImportError: naming the package and the extra.
    """
    try:
        yield
    except ImportError as error:
        package = error.name or str(error)
        raise ImportError(f"{package} is missing: pip install 'lorada[{extra}]'") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its accelerator."""
    signs = ("out of memory", "can't allocate", "not enough memory")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch's own writer, which knows no error numbers, says when a write fails.
TORCH_WRITER = ("inline_container.cc", "iostream error", "PytorchStreamWriter")


@contextmanager
def saving(what: Path | str, remedy: str) -> Iterator[None]:
    """Say what could not be saved and what to do, if the disk is full.

    Raises:
        OSError: in one line, whichever library was writing; other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        raise OSError(f"could not save {what}: {reason}. {remedy}") from error


def _full_disk(error: Exception) -> str | None:
    """Why a write failed, if it is for want of space."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return str(error.strerror) + (f" ({error.filename})" if error.filename else "")
    # The errors of safetensors and tokenizers, which are Rust, have the number in their text only.
    if any(f"(os error {number})" in text for number in NO_SPACE):
        return text.removeprefix("Error while serializing: ").removeprefix("I/O error: ")
    if isinstance(error, RuntimeError) and any(sign in text for sign in TORCH_WRITER):
        return f"a write failed, most likely for want of space ({text.rpartition('] . ')[2]})"
    return None
