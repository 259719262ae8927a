"""The table of what could be done next, where a comparison has measured what more rows bring."""

from typing import TYPE_CHECKING

from rich.table import Table

from lorada.cli.shared import console

if TYPE_CHECKING:
    from lorada.compare.report.summarize_comparison import Summary


def show_next_steps(summary: "Summary") -> None:
    """Print what could be done next, and what it gains; nothing where no curve is measured."""
    if not summary.next_steps:
        return
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("what to do next", overflow="fold")
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("what the number is", overflow="fold")
    for step in summary.next_steps:
        table.add_row(step.step, step.gain, step.meaning)
    console.print(table)
