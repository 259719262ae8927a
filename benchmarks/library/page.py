"""Pages of results: tables as Markdown and on the terminal, text between two marks of a page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lorada.support.files import write_atomic

END = "<!-- until here -->"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = "|" + "---|" * len(header)
    rows = ["| " + " | ".join(line) + " |" for line in (header, *lines)]
    return "\n".join([rows[0], rule, *rows[1:]])


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def read_marked(page: Path, script: str) -> str:
    """The text between a script's marks in a page."""
    rest = page.read_text(encoding="utf-8").split(begin_mark(script))[1]
    return rest.split(END, 1)[0]


def begin_mark(script: str) -> str:
    """The line that begins what a script writes."""
    return f"<!-- written by benchmarks/{script} -->\n"


def write_marked(page: Path, script: str, text: str) -> None:
    """Put text between a script's marks in a page, or make a page of nothing else.

    Args:
        page: the page.
        script: file name of the script, which the first mark names.
        text: what is to stand there.
    """
    begin = begin_mark(script)
    old = page.read_text(encoding="utf-8") if page.is_file() else f"{begin}{END}\n"
    before, rest = old.split(begin)
    _, after = rest.split(END, 1)
    write_atomic(page, f"{before}{begin}{text}{END}{after}")
