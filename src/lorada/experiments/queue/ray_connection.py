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
        if address != "auto":
            _refuse_closed_port(address)
        _try(address)
        # Ray's own messages are about its processes, not about jobs. It prints some whatever the
        # level of its logger is.
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        ray._private.worker._worker_logs_enabled = False
        quiet = {"log_to_driver": False, "configure_logging": False}
        try:
            ray.init(address, **quiet, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError) as error:  # Ray's texts have many lines
            raise _unreachable(address, str(error).strip().partition("\n")[0]) from error
        self.address = address
        self._head = "" if address.startswith(CLIENT) else ray.get_runtime_context().gcs_address
        self._asked = self._answered = time.monotonic()

    def refuse_lost(self, *, wait: bool = False) -> None:
        """Check now and then that the head of the cluster is there.

        With ``wait``, a head that does not answer is waited for, because Ray's own calls would end
        this process.

        Raises:
            ConnectionError: if it has not answered for some time.
        """
        if not self._head:  # Ray tells a client
            return
        if not wait and time.monotonic() - self._asked < ASK_EVERY:
            return
        while not self._answers():
            if self._asked - self._answered > LOST_AFTER:
                raise ConnectionError("its head does not answer")
            if not wait:
                return
            time.sleep(1.0)

    def _answers(self) -> bool:
        """Whether the head answers now."""
        self._asked = time.monotonic()
        try:
            _open(self._head)
        except OSError:
            return False
        self._answered = self._asked
        return True


def nodes() -> list[tuple[str, str, dict[str, float]]]:
    """The nodes that can run jobs: name with address, id, and resources such as CPU and GPU."""
    return [
        (f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["NodeID"], resources)
        for node in ray.nodes()
        if node["Alive"] and (resources := node["Resources"]).get("CPU")
    ]


def on_nodes(function: Any, *arguments: Any) -> dict[str, Any]:
    """Call a function on every node that can run jobs; return the results by the node's name."""
    answers: dict[str, Any] = {}
    for name, node, _ in nodes():
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(function)
        answers[f"{name} {node[:6]}" if name in answers else name] = task.remote(*arguments)
    values = ray.get([*answers.values()], timeout=ANSWER_WITHIN)
    return dict(zip(answers, values, strict=True))


def fitting(cpus: int, gpus: float) -> int:
    """How many jobs of this size all nodes together run at once."""
    count = 0.0
    for _, _, resources in nodes():
        by_cpu = resources["CPU"] // cpus
        count += min(by_cpu, resources.get("GPU", 0.0) // gpus) if gpus else by_cpu
    return int(count)


def refuse_unfit(name: str, cpus: int, gpus: float) -> None:
    """Refuse a job that would wait for ever.

    Raises:
        ValueError: if no node is large enough for it.
    """
    if not fitting(cpus, gpus):
        has = "; ".join(
            f"{node} has {resources['CPU']:g} and {resources.get('GPU', 0):g}"
            for node, _, resources in nodes()
        )
        raise ValueError(
            f"no node of the cluster can run {name}, which needs {cpus} CPU and {gpus:g} GPU "
            f"({has}): add a node that has them"
        )


def _refuse_closed_port(address: str) -> None:
    """Refuse an address of a wrong form, or at which nothing listens."""
    port = address.rpartition(":")[2]
    if address.startswith("ray:") != address.startswith(CLIENT) or not port.isdigit():
        raise ValueError(f"--cluster {address!r} is not auto, HOST:PORT or ray://HOST:PORT")
    try:
        _open(address.removeprefix(CLIENT))
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> ConnectionError:
    return ConnectionError(f"no Ray cluster at {address} ({reason}): {START}")


def _open(address: str) -> None:
    """Open and close a connection to ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()


def _try(address: str) -> None:
    """Connect in another process, with a time limit."""
    command = [sys.executable, "-c", TRY, address]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONNECT_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {CONNECT_WITHIN:.0f} s"
    else:
        if done.returncode == 0:
            return
        reason = " ".join(done.stderr.strip().splitlines()[-1:])
    raise _unreachable(address, reason)
