"""What runs on the nodes of a Ray cluster before it is known that they have this package.

Ray sends these functions by value, so nothing here may use ``lorada``.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft")
FOUND_WITHIN = 10.0  # seconds; a network file system may show a new file late


class Lines:
    """An actor of the cluster that holds the lines of jobs until the command fetches them."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, int, str]] = []
        self._begun: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """Count how often the task of this number has begun."""
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]

    def add(self, job: str, level: int, text: str) -> None:
        """Add a line of a job; ``level`` is that of a log record, 0 for a line of progress."""
        self._lines.append((job, level, text))

    def take(self) -> list[tuple[str, int, str]]:
        """The lines since the last call."""
        taken, self._lines = self._lines, []
        return taken


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python, of packages and of ``lorada`` with a checksum of its source.

    Builds for different accelerators (``2.9.0+cpu``) count as one version.
    """
    found = {"python": platform.python_version()}
    for package in ("lorada", *packages):
        try:
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    spec = importlib.util.find_spec("lorada")
    if spec is None or spec.origin is None:
        return {**found, "lorada": "none"}
    root, digest = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {**found, "lorada": f"{found['lorada']} (source {digest.hexdigest()[:8]})"}


def other_version(here: dict[str, str], there: dict[str, str], node: str) -> str | None:
    """The error for a node that has other versions than the command; None if it has the same."""
    for package, version in here.items():
        if there[package] != version:
            return (
                f"node {node} has {package} {there[package]}, and this command {version}: "
                "install the same versions on all nodes"
            )
    return None


def sees(path: str, text: str) -> bool:
    """Whether this node finds the file ``path`` with this text, after some seconds at most."""
    end = time.monotonic() + FOUND_WITHIN
    while True:
        try:
            if Path(path).read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() > end:
            return False
        time.sleep(0.5)


def carry_out(here: dict[str, str], order: bytes, lines: Any, *contents: bytes | None) -> Any:
    """Do a job on this node; see ``ray_task.carry_out``.

    Args:
        here: the versions of the command.
        order: the pickled ``Order``.
        lines: the actor for its lines.
        contents: of the files that are sent.

    Raises:
        ValueError: if this node, which may have joined the cluster late, has other versions.
    """
    if wrong := other_version(here, versions(), platform.node()):
        raise ValueError(wrong)
    from ray import cloudpickle

    import lorada_cli  # noqa: F401  with it loaded, importing lorada does not import torch
    from lorada.experiments.queue import ray_task

    return ray_task.carry_out(cloudpickle.loads(order), lines, *contents)
