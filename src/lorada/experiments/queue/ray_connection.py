"""Connects to a Ray cluster, lists its nodes, and notices when it is lost."""

import logging
import socket
import subprocess
import sys
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CLIENT = "ray://"  # begins the address for a machine outside of the cluster
CONNECT_WITHIN = 30.0  # seconds
ANSWER_WITHIN = 120.0  # seconds for a node to answer; it may have to start a process first
# Ray ends the process without an error when the head was gone for 60 seconds.
LOST_AFTER, ASK_EVERY = 20.0, 5.0  # seconds
START = (
    "start one by `ray start --head` and give --cluster auto there, or ray://HOST:10001 elsewhere"
)
# Connects in a process that can be ended: Ray tries for minutes, then exits without an error.
TRY = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except BaseException as error:
    sys.exit("".join(str(error).strip().splitlines()[:3]) or type(error).__name__)
"""


class Connection:
    """A connection of this process to a Ray cluster.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        ConnectionError: if no cluster answers there.
        ValueError: for another kind of address.
    """

    def __init__(self, address: str) -> None:
        reason = _unreachable(address)
        # Ray's own messages are about its processes, not about jobs. It prints some whatever the
        # level of its logger is.
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        ray._private.worker._worker_logs_enabled = False
        quiet = {"log_to_driver": False, "configure_logging": False}
        try:
            if reason is None:
                ray.init(address, **quiet, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError) as error:  # Ray's texts have many lines
            reason = str(error).strip().partition("\n")[0]
        if reason is not None:
            raise ConnectionError(f"no Ray cluster at {address} ({reason}): {START}")
        self.address = address
        # Ray itself tells a client that the head is gone.
        self._head = "" if address.startswith(CLIENT) else ray.get_runtime_context().gcs_address
        self._asked = self._answered = time.monotonic()

    def refuse_lost(self, *, wait: bool = False) -> None:
        """Check now and then that the head of the cluster is there.

        With ``wait``, a head that does not answer is waited for, because Ray's own calls would end
        this process.

        Raises:
            ConnectionError: if it has not answered for some time.
        """
        while self._head and (wait or time.monotonic() - self._asked > ASK_EVERY):
            self._asked = time.monotonic()
            try:
                _open(self._head)
            except OSError as error:
                if self._asked - self._answered > LOST_AFTER:
                    raise ConnectionError("its head does not answer") from error
                time.sleep(1.0)
            else:
                self._answered = self._asked
                return


def _unreachable(address: str) -> str | None:
    """Why no cluster can be reached at an address; None if one can.

    Raises:
        ValueError: for another kind of address.
    """
    if address != "auto":
        port = address.rpartition(":")[2]
        if address.startswith("ray:") != address.startswith(CLIENT) or not port.isdigit():
            raise ValueError(f"--cluster {address!r} is not auto, HOST:PORT or ray://HOST:PORT")
        try:
            _open(address.removeprefix(CLIENT))
        except OSError as error:
            return str(error)
    command = [sys.executable, "-c", TRY, address]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONNECT_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CONNECT_WITHIN:.0f} s"
    return " ".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else None


def _open(address: str) -> None:
    """Open and close a connection to ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()


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
