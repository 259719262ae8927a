"""The engine that runs jobs on a Ray cluster: one task for each job, each in a new process.

Jobs write into a folder that all nodes share. Ray starts a task again when its process or node
dies, and the job goes on from its last checkpoint. An error of the cluster itself ends the queue:
``wait`` raises it.
"""

import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ray
from ray import exceptions

from lorada.compare.jobs import ray_node
from lorada.compare.jobs.job import Job, Report
from lorada.compare.jobs.ray_connection import connect, nodes, on_nodes

SAVE_WITHIN = 600.0  # seconds for interrupted jobs to save
PROBE = ".lorada-probe-"  # begins the name of the file that every node must see


class RayEngine:
    """Runs jobs on a Ray cluster, each on one CPU, and on one GPU where the cluster has any.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, ``HOST:PORT`` for one of
            several, or ``ray://HOST:PORT`` from a machine outside of the cluster.

    Attributes:
        slots: how many jobs it runs at once.

    Raises:
        ConnectionError: if the cluster cannot be reached.
        ValueError: if it has no CPU for jobs.
    """

    def __init__(self, address: str) -> None:
        self._started: list[Job] = []
        self._names: dict[Any, str] = {}  # of the jobs that Ray has, by their tasks
        self._reports: dict[str, Report] = {}
        self._taking: Any = None  # lines that the actor was asked for
        self._probe: Any = None
        self._lost = False
        self._address = address
        connect(address)
        try:
            ray.cloudpickle.register_pickle_by_value(ray_node)
            with self._watched():
                self._lines = ray.remote(num_cpus=0, max_restarts=-1)(ray_node.Lines).remote()
                on_gpus = sum(int(min(cpus, gpus)) for _, cpus, gpus in nodes())
                self.slots = on_gpus or sum(int(cpus) for _, cpus, _ in nodes())
            if not self.slots:
                raise ValueError(f"the Ray cluster at {address} has no CPU: add a node with one")
            # A job without a GPU of its own would see none.
            needs = {"num_cpus": 1, "num_gpus": int(on_gpus > 0)}
            again = {"max_retries": ray_node.RETRIES, "max_calls": 1}
            self._task = ray.remote(**needs, **again)(ray_node.carry_out)
        except BaseException:
            ray.shutdown()
            raise

    def start(self, job: Job, report: Report) -> Hashable:
        """Note a job. ``wait`` hands it to Ray, so that an error of the cluster ends the queue."""
        self._reports[job.name] = report
        self._started.append(job)
        return job.name

    def wait(self) -> tuple[Hashable, BaseException | None]:
        """Wait until any job ends; return its handle, and its error if it failed.

        Raises:
            ConnectionError: if the cluster is lost.
            ValueError: if a node cannot run jobs.
        """
        with self._watched():
            while self._started:
                self._submit(self._started.pop(0))
            while True:
                ended, _ = ray.wait(list(self._names), timeout=1.0)
                self._pass_on_lines()
                if ended:
                    return self._names.pop(ended[0]), _error_of(ended[0])

    def close(self) -> None:
        """Interrupt the jobs that still run, wait until they have saved, and leave the cluster."""
        if self._names and not self._lost:
            with suppress(exceptions.RayError, ConnectionError):
                for task in self._names:
                    ray.cancel(task)
                ray.wait(list(self._names), num_returns=len(self._names), timeout=SAVE_WITHIN)
        self._names.clear()
        if self._probe is not None:
            with suppress(OSError):  # its folder was removed
                self._probe.close()
        ray.shutdown()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Turn Ray's errors about the cluster into one line, and remember it.

        Raises:
            ConnectionError: if the cluster is lost.
        """
        try:
            yield
        except (exceptions.RayError, ConnectionError) as error:
            self._lost = True
            why = str(error).partition("\n")[0]
            raise ConnectionError(
                f"the Ray cluster at {self._address} is lost ({why}): what is stored "
                "stays; start the cluster, then run the command again with --resume"
            ) from error

    def _check_nodes(self, folder: Path) -> None:
        """Write a file with a random name into a job's folder, which every node must see.

        Raises:
            ValueError: if one does not, or has other versions than this process.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._versions = ray_node.versions()
        self._probe = NamedTemporaryFile(prefix=PROBE, dir=folder.absolute())  # noqa: SIM115
        for wrong in filter(None, on_nodes(ray_node.refusal, self._versions, self._probe.name)):
            raise ValueError(wrong)

    def _submit(self, job: Job) -> None:
        """Hand a job to Ray, the first one after a check of all nodes."""
        if self._probe is None:
            self._check_nodes(job.folder)
        known = self._versions, self._probe.name, os.getcwd()
        task = self._task.options(name=job.name)
        pickled = ray.cloudpickle.dumps(job)
        self._names[task.remote(*known, pickled, self._lines)] = job.name

    def _pass_on_lines(self) -> None:
        """Report the lines of jobs that have arrived."""
        if self._taking is None:
            self._taking = self._lines.take.remote()
        try:
            lines = ray.get(self._taking, timeout=1.0)
        except exceptions.GetTimeoutError:  # asked for later, so that no line is lost
            return
        except exceptions.RayError:  # its node died, and a new actor starts elsewhere
            lines = []
        self._taking = None
        for name, text in lines:
            self._reports[name](text)


def _error_of(task: Any) -> BaseException | None:
    """The error of a task that has ended; None if it did its job."""
    try:
        ray.get(task)
    except exceptions.LocalRayletDiedError:  # an error of the cluster
        raise
    except exceptions.TaskCancelledError:
        return KeyboardInterrupt()
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else RuntimeError()
        cause.add_note(str(error))
        return cause
    except exceptions.OutOfMemoryError:
        return MemoryError("its node ran out of memory")
    except exceptions.RayError as error:
        return OSError(f"its process died {ray_node.RETRIES + 1} times ({type(error).__name__})")
    return None
