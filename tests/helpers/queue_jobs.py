"""Jobs for tests of the queue, for processes of their own."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from programs import until

from lorada.compare.jobs.job import Job, report
from lorada.runs.folder import locked
from lorada.runs.machine import peak_memory
from lorada.support.processes import gpu_share

# What a process sees while it imports the work: libraries look for cards when they are imported.
SEEN_AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")


def write(folder, text):
    """Report, and leave a file that says who did it and with which setting of threads."""
    import torch

    report("writing")
    (folder / "cards").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "not set"))
    (folder / "cards_at_import").write_text(SEEN_AT_IMPORT)
    (folder / "share").write_text(f"{gpu_share():g}")
    (folder / "written").open("a").write(f"{text} {torch.get_num_threads()}\n")


def fail(folder, text):
    raise ValueError(f"a first line\n{text}")


def end_by_sigterm(folder, text):
    """A process that a signal ends, and not for want of memory."""
    os.kill(os.getpid(), signal.SIGTERM)


def kill_at_first(folder, text):
    """A process that is killed in the middle, and goes on with what it left when called again."""
    if (folder / "half").exists():
        write(folder, text)
    else:
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def save_on_interrupt(folder, text):
    """Work that ends only by Ctrl-C, and saves then."""
    try:
        (folder / "begun").touch()  # from here on it may be interrupted
        time.sleep(100)
    except KeyboardInterrupt:
        time.sleep(0.5)
        (folder / "saved").touch()
        raise


def save_for_long(folder, text):
    """Work that saves for long after Ctrl-C, which only another one ends."""
    try:
        (folder / "begun").touch()
        time.sleep(100)
    except KeyboardInterrupt:
        (folder / "saving").touch()
        time.sleep(100)


def finish_on_interrupt(folder, text):
    """Work that Ctrl-C reaches in its last moment, so that it ends as if nothing had been."""
    try:
        (folder / "begun").touch()
        time.sleep(100)
    except KeyboardInterrupt:
        write(folder, text)


def wait_for(path, folder, text):
    """Work that is done when another job or the test has made a file."""
    (folder / "begun").touch()
    until(Path(path).exists, 60)
    write(folder, text)


def keep_peak(megabytes, folder, text):
    """Write what this process has needed at most, beside so much."""
    kept = bytearray(megabytes * 2**20)
    (folder / "peak").write_text(str(peak_memory()))
    del kept


def job(place, name, work=write, after=""):
    folder = place / name
    return Job(name, partial(work, folder, name), folder, (folder / "written").exists, after)


def started(place, *names, file="begun"):
    """Wait until the work of jobs has begun."""
    until(lambda: all((place / name / file).exists() for name in names), 60)


def lock_as_training(folder, text):
    """Work that takes the lock of the run, as training does."""
    with locked(folder):
        write(folder, text)


def is_gone(number):
    """Whether a process has ended; a zombie, whom nobody has asked for its code, has."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
