"""The task that does one job on a node of a Ray cluster."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.experiments.queue.collect import (
    CALLER,
    File,
    changed_files,
    make_copy,
    write_sent,
)
from lorada.experiments.queue.job import Job, Report, run_job
from lorada.experiments.queue.ray_node import sees

ARRIVE_WITHIN = 10.0  # seconds for the last line of a job


@dataclass(frozen=True)
class Order:
    """A job and what a node must know of the command that wants it done.

    Attributes:
        job: the job.
        directory: the command's working directory, where relative paths start.
        folder: the job's folder as an absolute path.
        token: the text of the file ``CALLER`` in the command's own ``folder``.
        collect: whether the job may write to this node's own disk.
        files: the files that are in the folder now; sent with ``collect`` only.
        reads: files and folders that the job reads, as absolute paths.
        number: of this order; its task begins again with the same number.
        most: how often it may begin.
    """

    job: Job
    directory: str
    folder: Path
    token: str
    collect: bool
    files: list[File]
    reads: tuple[Path, ...]
    number: int
    most: int


def carry_out(order: Order, lines: Any, *contents: bytes | None) -> list[File] | None:
    """Do a job on this node.

    Args:
        order: the job.
        lines: the actor that takes its lines.
        contents: of each of ``order.reads`` that is sent; None for one that is not.

    Returns:
        The files that the job wrote; None if the command sees them itself.

    Raises:
        ValueError: if this node lacks a path that it needs.
        MemoryError: if it was ended too often.
    """
    node = socket.gethostname()
    mark = order.folder / CALLER
    # A folder that is not shared would otherwise be waited for.
    shared = (mark.is_file() or not order.collect) and sees(str(mark), order.token)
    if not shared and not order.collect:
        raise ValueError(unshared(order.folder, [node]))
    _enter(order.directory, made=not shared)
    if os.path.realpath(order.job.folder) != os.path.realpath(order.folder):
        raise ValueError(f"node {node} has no folder {order.directory}: give absolute paths")
    if not shared:
        _prepare_copy(order, contents, node)
    for path in order.reads:
        if not path.exists():
            raise ValueError(f"node {node} has no {path}: put it on a path that all nodes share")
    with _reporting(order.job.name, lines) as report:
        _count(order, lines, report, node)
        run_job(order.job, report=report)
    if shared:
        return None
    files = changed_files(order.folder)
    shutil.rmtree(order.folder)
    return files


def _count(order: Order, lines: Any, report: Report, node: str) -> None:
    """Say so if this job begins again.

    Raises:
        MemoryError: if it has begun too often. Ray has no limit where it ends a task for memory.
    """
    import ray

    begun = 1
    with suppress(ray.exceptions.RayError):
        begun = ray.get(lines.begin.remote(order.number), timeout=ARRIVE_WITHIN)
    if begun > order.most:
        raise MemoryError(f"its process was ended {order.most} times, at last on node {node}")
    if begun > 1:
        report(f"its process ended; started again on node {node}")


def unshared(folder: Path, nodes: Sequence[str]) -> str:
    """The error for a folder that nodes do not see."""
    return (
        f"{folder} is not shared with node {', '.join(nodes)}: choose an --output on a path that "
        "all nodes share, or copy the files back with --collect"
    )


def _enter(directory: str, *, made: bool) -> None:
    """Make the command's working directory this process's own, if there is one or can be."""
    with suppress(OSError):  # then only absolute paths work, and relative ones are not found
        if made:
            os.makedirs(directory, exist_ok=True)
        os.chdir(directory)


def _prepare_copy(order: Order, contents: Sequence[bytes | None], node: str) -> None:
    """Make the job's folder and the files that it reads on this node.

    Raises:
        ValueError: if they cannot be made there.
    """
    try:
        make_copy(order.folder, order.token, order.files)
        for path, content in zip(order.reads, contents, strict=True):
            if content is not None:
                write_sent(path, content)
    except (OSError, ValueError) as error:
        raise ValueError(f"on node {node}: {error}") from error


@contextmanager
def _reporting(job: str, lines: Any) -> Iterator[Report]:
    """Yield a ``report`` that sends lines to the command; send log records as well."""
    import ray

    sent: list[Any] = []

    def send(level: int, text: str) -> None:
        sent[:] = [lines.add.remote(job, level, text)]

    handler = _Sender(send)
    logging.getLogger().addHandler(handler)
    try:
        yield lambda line: send(0, line)
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(Exception):  # lines may be lost, jobs not
            ray.get(sent, timeout=ARRIVE_WITHIN)


class _Sender(logging.Handler):
    """Sends warnings and errors as text."""

    def __init__(self, send: Any) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self._send(record.levelno, self.format(record))
