"""The curves of a training step, for docs/performance.md."""

from pathlib import Path
from typing import Any

from library.measuring import date_of
from library.page import markdown_table, write_marked

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SCRIPT = "measure_training_growth.py"
PICTURES = {name: f"training-{name}.png" for name in ("rows", "length", "vocabulary")}
HEADER = (
    "curve",
    "from, to",
    "lorada, ms per token",
    "the model's own loss",
    "ratio at the end",
    "date",
)


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each curve that is measured: its first and its last point."""
    found = []
    for name in PICTURES:
        row = results["rows"].get(name)
        if row is None:
            continue
        first, last = row["points"][0], row["points"][-1]
        single = last["single"]
        found.append((
            name,
            f"{first[name]:,} to {last[name]:,}",
            f"{first['lorada_ms']:.2f} to {last['lorada_ms']:.2f}",
            f"{first['plain_ms']:.2f} to {last['plain_ms']:.2f}",
            f"{last['lorada_ms'] / last['plain_ms']:.2f} ({min(single):.2f}–{max(single):.2f})",
            date_of(row),
        ))  # fmt: skip
    return found


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table and the pictures between the marks of the page."""
    about = results["settings"]
    drawn = [name for name in PICTURES if name in results["rows"]]
    pictures = markdown_table(
        [f"by {name}" for name in drawn],
        [[f"![Milliseconds per token by {name}]({PICTURES[name]})" for name in drawn]],
    )
    machine = f"{about['hardware']['cpu']}, {about['threads']} threads, fp32"
    size = f"{about['layers']} layers; {about['repetitions']} turns"
    table = markdown_table(HEADER, lines(results))
    text = f"\n{machine}; {size}.\n\n{table}\n\n{pictures}\n\n"
    write_marked(page, SCRIPT, text)
