"""Consoles without markup, and a progress bar that disappears when it is done."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from lorada.support.processes import is_main_process

Item = TypeVar("Item")


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints letters alone, as paths and prompts may hold brackets and colons."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def progress_bar(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterable[Item]:
    """Iterate over items with a progress bar on the error stream.

    ``total`` is the number of items, if ``items`` has no length.
    """
    console = plain_console(stderr=True)
    # Into a file rich would print an empty line for each bar.
    is_visible = is_main_process() and (console.is_interactive or console.is_jupyter)
    return track(
        items,
        escape(title),  # a title may hold brackets, which rich would read as colours
        total=total,
        transient=True,
        console=console,
        disable=not is_visible,
    )
