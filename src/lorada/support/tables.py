"""Tables of texts: how a cell without a number is shown, and a table as Markdown."""

from collections.abc import Iterable, Sequence

NOTHING = "–"  # text of a cell without a number


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> list[str]:
    """The lines of a Markdown table; the first ``texts`` columns are not numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(header) - texts)
    return [_bar(header), rule, *map(_bar, rows)]


def _bar(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
