"""A progress bar over work that a person waits for, gone when it is done."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from lorada.processes import first

Item = TypeVar("Item")


def watched(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterable[Item]:
    """The same items, with a bar on the error stream.

    Args:
        items: what is worked through.
        title: what is happening.
        total: how many there are, where ``items`` cannot tell.
    """
    return track(
        items, title, total=total, transient=True, console=Console(stderr=True), disable=not first()
    )
