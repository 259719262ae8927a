"""Connects to a Ray cluster and lists its nodes."""

import logging
import socket
import subprocess
import sys
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CLIENT = "ray://"  # begins the address for a machine outside of the cluster
CONNECT_WITHIN = 30.0  # seconds
ANSWER_WITHIN = 120.0  # seconds for a node to answer; it may have to start a process first
START = (
    "start one by `ray start --head` and give --cluster auto there, or ray://HOST:10001 elsewhere"
)
# Connects in a process that can be ended: where something else listens, or an old cluster is gone,
# Ray tries for minutes, then exits without an error.
TRY = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except BaseException as error:
    sys.exit(str(error).strip().partition("\\n")[0] or type(error).__name__)
"""


def connect(address: str) -> None:
    """Connect this process to a Ray cluster.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        ConnectionError: if no cluster answers there.
        ValueError: for another kind of address.
    """
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if address != "auto" and (host.startswith("ray:") or not port.isdigit()):
        raise ValueError(f"--cluster {address!r} is not auto, HOST:PORT or ray://HOST:PORT")
    # Ray's own messages are about its processes, not about jobs. It prints some whatever the level
    # of its logger is.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        command = [sys.executable, "-c", TRY, address]
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=CONNECT_WITHIN, check=False
        )
        if tried.returncode:
            raise OSError(tried.stderr.strip().rpartition("\n")[2])
        ray.init(address, **quiet, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        reason = str(error).strip().partition("\n")[0]  # Ray's texts have many lines
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"no answer within {CONNECT_WITHIN:.0f} s"
        raise ConnectionError(f"no Ray cluster at {address} ({reason}): {START}") from error


def nodes() -> list[tuple[str, float, float]]:
    """The nodes that can run jobs: id, CPUs and GPUs."""
    return [
        (node["NodeID"], cpus, node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and (cpus := node["Resources"].get("CPU"))
    ]


def on_nodes(function: Any, *arguments: Any) -> list[Any]:
    """Call a function on every node that can run jobs; return what it returns there."""
    tasks = []
    for node, _, _ in nodes():
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(function)
        tasks.append(task.remote(*arguments))
    found: list[Any] = ray.get(tasks, timeout=ANSWER_WITHIN)
    return found
