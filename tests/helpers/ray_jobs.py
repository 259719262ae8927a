"""A small Ray cluster for tests, and the work of its jobs."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from paths import HELPERS, ROOT

from lorada.compare.jobs.job import report

STARTED_WITHIN = 90  # seconds


class Addresses(NamedTuple):
    member: str
    client: str


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def processes_with(text):
    """The processes of this machine that have a text in their command line or environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            known = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in known and int(folder.name) != os.getpid():
            yield int(folder.name)


@contextmanager
def cluster(cpus=2, gpus=0):
    """A cluster of this machine alone; yields its addresses."""
    # Sockets have short names only, so this is not in pytest's folder.
    with tempfile.TemporaryDirectory(prefix="lorada-ray-", ignore_cleanup_errors=True) as place:
        port, client = free_port(), free_port()
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--port={port}", f"--ray-client-server-port={client}", f"--num-cpus={cpus}",
            f"--num-gpus={gpus}", f"--temp-dir={place}", "--include-dashboard=false",
            "--disable-usage-stats", "--object-store-memory=100000000",
        ]  # fmt: skip
        paths = os.pathsep.join([str(ROOT / "src"), str(HELPERS)])
        variables = {**os.environ, "PYTHONPATH": paths, "LORADA_TEST_CLUSTER": place}
        with open(Path(place) / "output", "w") as output:
            # Interrupts are ignored, as in what a script starts in the background.
            words = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
            subprocess.Popen(words, env=variables, stdout=output, stderr=output)
        try:
            end = time.monotonic() + STARTED_WITHIN
            while "Ray runtime started" not in (Path(place) / "output").read_text():
                assert time.monotonic() < end, (Path(place) / "output").read_text()
                time.sleep(0.2)
            yield Addresses(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}")
        finally:
            for process in processes_with(f"LORADA_TEST_CLUSTER={place}"):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def train_run(recipe):
    """Train a run, or go on with it."""
    from lorada.compare.learning_rate import train_on

    train_on(recipe, "training")


def write(folder: Path):
    """Report, and write which GPUs the job may use."""
    report("writing")
    (folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "not set"))
    (folder / "result.json").write_text("{}")


def fail(folder: Path):
    """Fail in two lines."""
    raise ValueError("first line\nlast line")


def die(folder: Path):
    """Die without an answer."""
    with (folder / "deaths").open("a") as deaths:
        deaths.write("died\n")
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_interrupt(folder: Path):
    """Wait until interrupted, then write that."""
    try:
        (folder / "started").touch()
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        (folder / "saved").touch()
        raise
