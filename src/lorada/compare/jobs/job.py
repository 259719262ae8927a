"""A job: what is done to one folder in a process of its own, such as a training and its scoring.

A job does what ``lorada train --resume`` and ``lorada evaluate`` do, so it may be called again at
any time. What it prints goes to ``job.log`` in its folder, where the command that waits for it
reads how far it is: also on another machine, as these share the folder.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorada.runs.folder import LOCK_FILE, LOG_FILE, HeldError, locked
from lorada.support.error_messages import out_of_memory, out_of_memory_line
from lorada.support.processes import hide_bars

JOB_FILE = ".lorada.job"  # not the lock of a run, which training takes in the same folder
SCORING = "scoring"  # what a job reports behind its training
REPORT = "> "  # begins what a job reports, among all that libraries print
TAIL = 10_000  # bytes of a log that are looked at
# How far a training is, in what ``StepReports`` reports: of a search after so many whole trials.
STEP = re.compile(r"(?:trial (?P<trials>\d+).*: )?step (?P<step>\d+) of (?P<steps>\d+)$")

Status = Literal["done", "kept", "failed", "held", "waiting", "interrupted"]


@dataclass(frozen=True)
class Job:
    """One piece of work in a process of its own."""

    name: str  # in progress lines; no other job of the queue has it
    # Does whatever is not done yet; must pickle, as a function of a module or a ``partial`` of one.
    work: Callable[[], Any]
    folder: Path  # where it writes; one process at a time works there
    done: Callable[[], bool]  # whether the work is done; called often, and must pickle too
    after: str = ""  # name of the job that must be done before this one starts; empty for none
    reads: tuple[Path, ...] = ()  # what else it reads, which every node of a cluster must have
    trainings: float = 1.0  # how many trainings it usually takes, for the time that is left


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    status: Status  # now, before, failed, in another process, not begun, or by Ctrl-C
    error: str = ""  # the last line of the error of a job that failed or is held


def carry_out(job: Job) -> Outcome:
    """Do the work of a job in this process, which is its own, unless it is done."""
    try:
        with locked(job.folder, JOB_FILE):
            if job.done():  # by another process, since this one was started
                return Outcome("kept")
            hide_bars()
            with _logged(job.folder / LOG_FILE):
                job.work()
    except KeyboardInterrupt:
        return Outcome("interrupted")
    except HeldError as error:
        return Outcome("held", last_line(error))
    except Exception as error:
        return Outcome("failed", last_line(error))
    return Outcome("done")


@contextmanager
def held(folders: Iterable[Path]) -> Iterator[None]:
    """Keep jobs and trainings out of folders, as before they are deleted.

    Raises:
        HeldError: if another process works in one of them.
    """
    with ExitStack() as stack:
        for folder in folders:
            for name in (JOB_FILE, LOCK_FILE):
                stack.enter_context(locked(folder, name))
        yield


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send what this process prints, and the traceback of an error, to the end of a file.

    The files of the process are replaced, not those of Python, as libraries in C print too.
    """
    standard_files = {number: os.dup(number) for number in (1, 2)}  # stdout and stderr
    sys.stdout.flush()
    with path.open("a") as log:
        for number in standard_files:
            os.dup2(log.fileno(), number)
    try:
        yield
    except Exception:
        os.write(2, traceback.format_exc().encode())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in standard_files.items():
            os.dup2(file, number)
            os.close(file)


def report(line: str) -> None:
    """Print a line of a job for the command that waits for it."""
    print(f"{REPORT}{line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    line: str = ""  # the last that it has reported; empty before the first
    share: float = 0.0  # of its work that is done by then


def progress_of(job: Job) -> Progress:
    """How far a job is, by what it has reported so far."""
    line, share = "", 0.0
    for reported in _reported_lines(job.folder / LOG_FILE):
        line = reported
        step = STEP.search(line)
        if step is not None:
            trainings = int(step["trials"] or 0) + int(step["step"]) / int(step["steps"])
            share = min(1.0, trainings / job.trainings)
    if line == SCORING:
        share = 1.0
    return Progress(line, share)


def _reported_lines(path: Path) -> list[str]:
    """The whole lines at the end of a log that the job has reported, not what libraries print."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - TAIL))
            end = log.read().decode(errors="replace")
    except OSError:  # the job has not begun yet, or another machine does not see the file yet
        return []
    lines = []
    for line in end.splitlines(keepends=True):
        if line.startswith(REPORT) and line.endswith("\n"):  # else it is not written to its end
            lines.append(line.removeprefix(REPORT).removesuffix("\n"))
    return lines


# Errors that are meant to be read; the kind of others is named, as the text alone may say nothing.
READABLE = (ValueError, OSError, ImportError, MemoryError, RuntimeError)


def last_line(error: BaseException) -> str:
    """The last line of an error; where memory ran out, the line that says what helps."""
    if isinstance(error, MemoryError | RuntimeError) and out_of_memory(error):
        return out_of_memory_line(error)
    lines = str(error).strip().splitlines()
    text = lines[-1] if lines else ""
    if text and isinstance(error, READABLE):
        return text
    return f"{type(error).__name__}: {text}"
