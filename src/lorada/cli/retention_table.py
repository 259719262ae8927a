"""The table of what each method of a comparison gains, and what it loses elsewhere."""

from typing import TYPE_CHECKING

from rich.table import Table

from lorada.cli.shared import console
from lorada.support.tables import NOTHING

if TYPE_CHECKING:
    from lorada.compare.report.summarize_comparison import Summary


def show_retention(summary: "Summary") -> None:
    """Print what each method gains and what it loses elsewhere; nothing where nothing is known."""
    from lorada.compare.report.retention_summary import gain_cell, lost_cell

    retention = summary.retention
    if all(method.lost is None for method in retention.methods):
        return
    heads = ["gain (95 %)", "lost elsewhere, nats a token (95 %)"]
    has_letters = any(method.letter for method in retention.methods)
    if has_letters:
        heads.append("group")
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("", overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for method in retention.methods:
        cells = [gain_cell(method, summary.scale), lost_cell(method)]
        if has_letters:
            cells.append(method.letter or NOTHING)
        table.add_row(method.method, *cells)
    console.print(table, crop=False)
