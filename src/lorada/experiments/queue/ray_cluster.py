"""The engine that runs jobs on a Ray cluster: one task for each job, each in a new process.

Ray starts a task again when its process or node dies, and the job goes on from its last checkpoint.
An error of the cluster itself ends the queue: ``wait`` raises it.
"""

import itertools
import logging
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from lorada.experiments.queue import ray_node
from lorada.experiments.queue.collect import CALLER, files_in, token_of, write_files
from lorada.experiments.queue.job import Job, Report
from lorada.experiments.queue.ray_connection import (
    Connection,
    fitting,
    on_nodes,
    refuse_unfit,
)
from lorada.experiments.queue.ray_task import Order, unshared

logger = logging.getLogger(__name__)

RETRIES = 3  # how often a job starts again after its process died
SAVE_WITHIN = 600.0  # seconds for interrupted jobs to save


class RayEngine:
    """Runs jobs on a Ray cluster; a job that names no GPU gets one where the cluster has any.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, ``HOST:PORT`` for one of
            several, or ``ray://HOST:PORT`` from a machine outside of the cluster.
        collect: let jobs write to the disks of their nodes, and copy their files back.

    Attributes:
        slots: how many jobs like the last one run at once.

    Raises:
        ConnectionError: if the cluster cannot be reached.
        ValueError: if a node has other versions of Python or packages than this process.
    """

    def __init__(self, address: str, *, collect: bool = False) -> None:
        self._collect = collect
        self._tasks: dict[Any, Job] = {}
        self._reports: dict[str, Report] = {}
        self._contents: dict[tuple[Path, int], Any] = {}  # of files that jobs read, sent once
        self._numbers = itertools.count()
        self._taking: Any = None  # lines that the actor was asked for
        self._error: Exception | None = None
        self._probed = collect
        self._connection = Connection(address)
        try:
            ray.cloudpickle.register_pickle_by_value(ray_node)
            self._versions = ray_node.versions()
            with self._watched():
                for name, found in on_nodes(ray_node.versions).items():
                    if wrong := ray_node.other_version(self._versions, found, name):
                        raise ValueError(wrong)
                self._lines = ray.remote(num_cpus=0, max_restarts=-1)(ray_node.Lines).remote()
                self._has_gpus = fitting(1, 1) > 0
                self.slots = max(1, fitting(1, int(self._has_gpus)))
            self._task = ray.remote(max_retries=RETRIES, max_calls=1)(ray_node.carry_out)
        except BaseException:
            ray.shutdown()
            raise

    def start(self, job: Job, report: Report) -> Hashable:
        """Start a job as a task.

        Raises:
            OSError: if its folder or a file that it reads cannot be read.
        """
        if not job.gpus and self._has_gpus:
            job = replace(job, gpus=1.0)  # without one, Ray would hide them from the job
        if self._error is None:
            order = self._order(job)
            self._reports[job.name] = report
            try:
                with self._watched():
                    self._connection.refuse_lost(wait=True)
                    refuse_unfit(job.name, job.cpus, job.gpus)
                    self._probe(order)
                    self._tasks[self._submit(order)] = job
                    self.slots = fitting(job.cpus, job.gpus)
            except (ConnectionError, ValueError) as error:  # no other job could run either
                self._error = error
                self._forget_token(job)
        return job.name

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """Wait until any job ends; return its handle, and its error if it failed.

        Raises:
            ConnectionError: if the cluster is lost.
            ValueError: if it cannot run these jobs.
        """
        if self._error is not None:
            raise self._error
        with self._watched():
            while True:
                ended, _ = ray.wait(list(self._tasks), timeout=1.0)
                self._pass_on_lines()
                if ended:
                    job = self._tasks.pop(ended[0])
                    return job.name, self._outcome(job, ended[0])
                self._connection.refuse_lost()

    def close(self, interrupt: bool) -> None:
        """Leave the cluster.

        With ``interrupt``, running jobs are interrupted, and this waits until they have saved.
        """
        if interrupt and self._tasks and not isinstance(self._error, ConnectionError):
            with suppress(RayError, ConnectionError):
                for task in self._tasks:
                    ray.cancel(task)
                ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=SAVE_WITHIN)
        for job in self._tasks.values():
            self._forget_token(job)
        self._tasks.clear()
        ray.shutdown()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Turn Ray's errors about the cluster into one line, and remember it.

        Raises:
            ConnectionError: if the cluster is lost.
        """
        try:
            yield
        except (RayError, ConnectionError) as error:
            why = str(error).partition("\n")[0]
            self._error = ConnectionError(
                f"the Ray cluster at {self._connection.address} is lost ({why}): what is stored "
                "stays; start the cluster, then run the command again with --resume"
            )
            raise self._error from error

    def _order(self, job: Job) -> Order:
        """All that a node must know to do a job."""
        folder = Path(os.path.abspath(job.folder))
        folder.mkdir(parents=True, exist_ok=True)
        return Order(
            job=job,
            directory=os.getcwd(),
            folder=folder,
            token=token_of(folder),
            collect=self._collect,
            files=files_in(folder) if self._collect else [],
            reads=tuple(Path(os.path.abspath(path)) for path in job.reads),
            number=next(self._numbers),
            most=RETRIES + 1,
        )

    def _submit(self, order: Order) -> Any:
        """Hand a job to Ray; return Ray's reference to its task."""
        job = order.job
        task = self._task.options(name=job.name, num_cpus=job.cpus, num_gpus=job.gpus)
        contents = [self._content(path) for path in order.reads]
        pickled = ray.cloudpickle.dumps(order)
        return task.remote(self._versions, pickled, self._lines, *contents)

    def _content(self, path: Path) -> Any:
        """A file's content in Ray's object store if nodes may need a copy of it, else None."""
        if not self._collect or not path.is_file():
            return None
        key = path, path.stat().st_mtime_ns
        if key not in self._contents:
            self._contents[key] = ray.put(path.read_bytes())
        return self._contents[key]

    def _probe(self, order: Order) -> None:
        """Refuse nodes that do not share the folder of the first job."""
        if not self._probed:
            found = on_nodes(ray_node.sees, str(order.folder / CALLER), order.token)
            if blind := [name for name, seen in found.items() if not seen]:
                raise ValueError(unshared(order.folder, blind))
            self._probed = True

    def _pass_on_lines(self) -> None:
        """Report the lines of jobs that have arrived, and log their warnings."""
        if self._taking is None:
            self._taking = self._lines.take.remote()
        try:
            lines = ray.get(self._taking, timeout=1.0)
        except GetTimeoutError:  # asked for later, so that no line is lost
            return
        except RayError:  # its node died, and a new actor starts elsewhere
            lines = []
        self._taking = None
        for name, level, text in lines:
            if level:
                logger.log(level, "%s: %s", name, text)
            else:
                self._reports[name](text)

    def _outcome(self, job: Job, task: Any) -> BaseException | None:
        """Keep the files of a job that has ended, or return its error."""
        try:
            files = ray.get(task)
            if files is not None:
                write_files(Path(job.folder), files)
        except LocalRayletDiedError:  # an error of the cluster
            raise
        except TaskCancelledError:
            return KeyboardInterrupt()
        except RayTaskError as error:
            self._forget_token(job)
            cause = error.cause if isinstance(error.cause, Exception) else RuntimeError()
            cause.add_note(str(error))
            return cause
        except OutOfMemoryError:
            return MemoryError("its node ran out of memory")
        except RayError as error:
            return OSError(f"its process died {RETRIES + 1} times ({type(error).__name__})")
        except (OSError, ValueError) as error:  # the files cannot be kept
            return error
        with suppress(OSError):
            (Path(job.folder) / CALLER).unlink()
        return None

    def _forget_token(self, job: Job) -> None:
        """Remove the token from a job's folder, unless a copy is to be continued by it."""
        if not self._collect:
            with suppress(OSError):
                (Path(job.folder) / CALLER).unlink()
