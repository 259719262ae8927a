"""The table of how long answers take, for benchmarks/NOTES.md and the terminal."""

from pathlib import Path
from typing import Any

from library.measuring import date_of
from library.page import markdown_table, print_table, write_marked

PAGE = Path(__file__).parents[1] / "NOTES.md"
SCRIPT = "measure_generated_answers.py"
HEADER = (
    "answers", "tokens read, written", "refilled / padded", "single turns", "padded / padded",
    "processor time: refilled / padded", "padded / padded", "same answers", "date",
)  # fmt: skip
NAMES = {"even": "1 to {} tokens, each length as often", "tail": "most short, few up to {}",
         "alike": "all {}"}  # fmt: skip


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table, of the mixes that are measured."""
    found = []
    for mix, name in NAMES.items():
        if row := results["rows"].get(mix):
            single = f"{row['lowest']:.2f}–{row['highest']:.2f} in {row['turns']}"
            found.append((
                name.format(results["settings"]["limit"]),
                f"{row['tokens_read']:,}, {row['tokens_written']:,}",
                f"{row['ratio']:.2f}", single, f"{row['noise']['ratio']:.2f}",
                f"{row['processor']['ratio']:.2f}", f"{row['processor_noise']['ratio']:.2f}",
                f"{row['same']:,} of {row['rows']:,}",
                date_of(row),
            ))  # fmt: skip
    return found


def write_page(page: Path, results: dict[str, Any]) -> None:
    """Write the table between the marks of the page."""
    about = results["settings"]
    packages = about["versions"]
    text = (
        f"{about['hardware']['cpu']}, {about['threads']} threads, fp32, torch {packages['torch']}, "
        f"transformers {packages['transformers']}; {about['count']:,} rows with prompts of "
        f"{about['shortest']} to {about['longest']} tokens, {about['layers']} layers; "
        f"{about['size']} rows refilled, {about['batch']} padded at one time.\n\n"
        f"{markdown_table(HEADER, lines(results))}\n\n"
    )
    write_marked(page, SCRIPT, text)


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    print_table(HEADER, lines(results))
