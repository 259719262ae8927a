"""Consoles without markup, and a progress bar that disappears when it is done."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from lorada.support.processes import is_first

Item = TypeVar("Item")
_shown: ContextVar[bool] = ContextVar("_shown", default=True)


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints letters alone, as paths and prompts may hold brackets and colons."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def progress_bar(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterable[Item]:
    """Iterate over items with a progress bar on the error stream.

    ``total`` is the number of items, if ``items`` has no length.
    """
    console = plain_console(stderr=True)
    return track(
        items,
        escape(title),
        total=total,
        transient=True,
        console=console,
        disable=not (is_first() and _shown.get()),
    )


@contextmanager
def only_reports() -> Iterator[None]:
    """Hide progress bars and printed losses in a ``with`` block, for jobs that report lines."""
    import datasets
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    token = _shown.set(False)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        _shown.reset(token)
        if before[0]:
            logging.enable_progress_bar()
        if before[1]:
            datasets.enable_progress_bars()
