"""Chooses the engine that the options of a command ask for."""

from lorada.experiments.queue.job import Engine
from lorada.experiments.queue.local import OneAtATime, Workers
from lorada.support.errors import needs_extra


def engine_named(workers: int = 1, cluster: str | None = None, collect: bool = False) -> Engine:
    """The engine for the options of a command.

    Args:
        workers: processes at once on this machine.
        cluster: address of a Ray cluster, such as ``auto`` or ``ray://HOST:PORT``; None for this
            machine.
        collect: copy the folders of jobs from the cluster's machines, as they share no path.

    Raises:
        ImportError: for a cluster where Ray is not installed.
        OSError: if the cluster cannot be reached.
    """
    if cluster is None:
        return OneAtATime() if workers == 1 else Workers(workers)
    with needs_extra("cluster"):
        from lorada.experiments.queue.ray_cluster import RayEngine
    return RayEngine(cluster, collect=collect)
