"""Consoles that print what they are given, and a progress bar, gone when its work is done."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from lorada.support.processes import first

Item = TypeVar("Item")


def plain_console(*, stderr: bool = False) -> Console:
    """A console to which brackets and colons are letters, as they are in paths and prompts."""
    return Console(stderr=stderr, markup=False, emoji=False)


def watched(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterable[Item]:
    """The same items, with a bar on the error stream.

    Args:
        items: what is worked through.
        title: what is happening.
        total: how many there are, where ``items`` cannot tell.
    """
    console = plain_console(stderr=True)
    return track(
        items, escape(title), total=total, transient=True, console=console, disable=not first()
    )
