"""Writes tests/published_numbers.json: what the paper prints in its tables, as numbers and names.

    python scripts/published_numbers.py paper.md

The paper itself is not part of the repository. The script reads its text, in which a table is a run
of lines whose cells are separated by tabs, below a line that begins with ``Table N:``. Mistakes of
that text stay as they are; the tests that read the fixture know them.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[1] / "tests" / "published_numbers.json"
RESULTS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 18)
HYPERPARAMETERS = (15, 16, 17, 19)
# Heads of columns that hold no score.
NAMES = {"model", "methods", "method", "method (# params)", "# params", "# params (%)",
         "negative", "low-rank", "position"}  # fmt: skip


def extract(text: str) -> dict[str, Any]:
    """The tables of scores and of hyperparameters that are in the text of the paper.

    Args:
        text: the whole text.

    Returns:
        ``results`` and ``hyperparameters``, each by the number of the table.
    """
    return {
        "results": {str(number): results(cells(text, number)) for number in RESULTS},
        "hyperparameters": {
            str(number): hyperparameters(cells(text, number)) for number in HYPERPARAMETERS
        },
    }


def cells(text: str, number: int) -> list[list[str]]:
    """The rows of a table, its head first."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
    first = next(i for i in range(start + 1, len(lines)) if "\t" in lines[i])
    last = next((i for i in range(first, len(lines)) if "\t" not in lines[i]), len(lines))
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines[first:last]]
    if number == 12:  # whose last line repeats the numbers of its first column
        del rows[-1]
    return rows


def results(rows: list[list[str]]) -> dict[str, Any]:
    """The titles of the columns that hold scores, and the rows."""
    head, *body = rows
    titles = [title for title in head if title.lower() not in NAMES]
    return {"titles": titles, "rows": [_row(head, row) for row in body]}


def _row(head: list[str], row: list[str]) -> dict[str, Any]:
    """Model, name, share of trained parameters, scores, their ±, and the gain behind a +."""
    method = next((i for i, name in enumerate(head) if name.startswith("Method")), None)
    name = row[method] if method is not None else ""
    share = next((i for i, title in enumerate(head) if title.lower().startswith("# params")), None)
    # Without a column for it, the share stands behind the name.
    params = row[share] if share is not None else re.findall(r"\((.*?%)\)", name)[0]
    scores: list[str] = []
    spreads: list[str] = []
    gains: list[str] = []
    for i, cell in enumerate(row):
        if i in (method, share) or head[i] == "Model":
            continue
        cell, _, gain = cell.partition("(+")
        score, _, spread = cell.replace(r"\pm", "±").partition("±")
        for found, part in ((scores, score), (spreads, spread), (gains, gain)):
            found += re.findall(r"\d*\.\d+|\d+", part)
    return {
        "model": row[0] if head[0] == "Model" else "",
        "name": name,
        "params": params.replace("%", "").strip(),
        "scores": scores,
        "spreads": spreads,
        "gains": gains,
    }


def hyperparameters(rows: list[list[str]]) -> dict[str, list[str]]:
    """The cells of each row by its name; of two rows of one name, those of the last.

    What is underlined, which is what was chosen, stays between ``<u>`` and ``</u>``.
    """
    # The first column of Table 17 names the experiment.
    skip = 1 if rows[0][0] == "Experiment" else 0
    named = [row[skip:] for row in rows if len(row) > skip + 1]
    return {re.sub(r"[ $†]|\\dagger", "", row[0]): row[1:] for row in named}


def page(value: Any, depth: int = 0) -> str:
    """JSON with a line for each row of a table."""
    if isinstance(value, dict) and depth < 4:
        lines = [f"{json.dumps(name)}: {page(inner, depth + 1)}" for name, inner in value.items()]
    elif isinstance(value, list) and depth == 3 and isinstance(value[0], dict):
        lines = [page(row, depth + 1) for row in value]
    else:
        return json.dumps(value, ensure_ascii=False)
    indent = "\n" + " " * depth
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + ",".join(f"{indent} {line}" for line in lines) + indent + closing


if __name__ == "__main__":
    paper = Path(sys.argv[1]).read_text(encoding="utf-8")
    FIXTURE.write_text(page(extract(paper)) + "\n", encoding="utf-8")
