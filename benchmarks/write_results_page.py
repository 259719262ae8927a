"""Write a section of docs/studies/tables.md: every table of the paper that was run here.

The tables are read from docs/results; what differs from the paper stays there, above each table.
``lorada table N --scale local --data-dir DIR --resume`` runs what is missing of a table.
"""

import json
import sys
from pathlib import Path
from typing import Any

from library.page import write_marked

from lorada.paper.table_spec import load_table

DOCS = Path(__file__).parents[1] / "docs"
NUMBERS = [4, 6, 7, 8, *range(10, 15), 18]  # 5 and 9 are asked by docs/atlas.md and docs/study.md
PAGE = DOCS / "studies" / "tables.md"
SCRIPT = Path(__file__).name
# The lines above a table that the page repeats; `table.md` has all.
REPEATED = ("ours", "protocol", "rows to learn from", "scored rows")
INTRO = """
{runs} runs, {hours:.1f} hours of training in all. Other programs ran on the same two cores, so a
run alone takes no longer than its minutes say.
{missing}"""


def results_of(folder: Path) -> list[dict[str, Any]]:
    """The results of a table's runs."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("seed*.json"))]


def rows_of(folder: Path) -> set[str]:
    """The rows of a table that have a result."""
    return {str(p.relative_to(folder).parent.parent) for p in folder.rglob("seed*.json")}


def shortened(table: str) -> str:
    """A table with the first of the lines above it, as one paragraph."""
    kept, about = [], []
    for line in table.splitlines():
        if not line.startswith("- "):
            kept.append("#" + line if line.startswith("## ") else line)
        elif line.removeprefix("- ").split(":")[0] in REPEATED:
            about.append(line.removeprefix("- ").removesuffix(".").split("; rows are from")[0])
    first = "; ".join(about)
    return "\n".join([kept[0], "", f"{first[0].upper()}{first[1:]}.", *kept[2:]])


def section(docs: Path = DOCS) -> str:
    """The section of the page."""
    tables, results, missing = [], [], []
    for number in NUMBERS:
        folder = docs / "results" / f"table{number}" / "local"
        rows = load_table(f"table{number}").rows_at("local", None)
        # Beside table.md there may be a table of fewer tasks, trained together.
        pages = sorted(folder.glob("table*.md"))
        if not pages:
            missing.append(f"Table {number}")
            continue
        tables += [shortened(path.read_text(encoding="utf-8").strip()) for path in pages]
        results += results_of(folder)
        if len(rows_of(folder)) < len(rows):
            tables[-1] += f"\n\nRun so far: {len(rows_of(folder))} of {len(rows)} rows."
    left = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    hours = sum(result["wall_time_s"] for result in results) / 3600
    intro = INTRO.format(runs=len(results), hours=hours, missing=left)
    return "\n\n".join([intro.rstrip(), *tables]) + "\n\n"


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit("this takes no arguments")
    write_marked(PAGE, SCRIPT, section())


if __name__ == "__main__":
    main()
