"""Writes docs/results.md: all tables that were run, from docs/results, below what they say.

What they say is written by hand, in docs/results/findings.md. What is missing of a table is run by
``lorada table N --scale local --data-dir DIR --resume``.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lorada.experiments.table_spec import load_table
from lorada.support.files import write_whole

DOCS = Path(__file__).parents[1] / "docs"
NUMBERS = [*range(4, 15), 18]
INTRO = """# The paper's tables, run here

Each table below is what `lorada table N --scale local` printed, with `--rows`, `--tasks` and
`--seeds` for what it shows: small models and samples of the real data under the paper's protocols,
beside the paper's own numbers. The two lines of a row are not comparable in height, and the list
above each table says why; what can be compared is how our rows stand to each other. Every
`result.json` is under `docs/results`, where `--resume` finds it. Tables 2 and 3 are
computed: `lorada table 2`, `lorada table 3`. This page is made by `python benchmarks/results.py`.

{runs} runs, {hours:.1f} hours of training in all, beside other work on the same two cores: minutes
say what such a run costs at most.
{missing}"""


def results_of(folder: Path) -> list[dict[str, Any]]:
    """The results of a table."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("seed*.json"))]


def rows_of(folder: Path) -> set[str]:
    """The rows of a table that have a result."""
    return {str(p.relative_to(folder).parent.parent) for p in folder.rglob("seed*.json")}


def page(docs: Path = DOCS) -> str:
    """The whole page."""
    tables, results, missing = [], [], []
    for number in NUMBERS:
        folder = docs / "results" / f"table{number}" / "local"
        rows = load_table(f"table{number}").rows_at("local", None)
        # Beside table.md there may be one of fewer tasks, learned together.
        pages = sorted(folder.glob("table*.md"))
        if not pages:
            missing.append(f"Table {number}")
            continue
        tables += [path.read_text(encoding="utf-8").strip() for path in pages]
        results += results_of(folder)
        if len(rows_of(folder)) < len(rows):
            tables[-1] += f"\n\nRun so far: {len(rows_of(folder))} of {len(rows)} rows."
    left = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    hours = sum(result["wall_time_s"] for result in results) / 3600
    intro = INTRO.format(runs=len(results), hours=hours, missing=left)
    findings = docs / "results" / "findings.md"
    said = [findings.read_text(encoding="utf-8").strip()] if findings.is_file() else []
    return "\n\n".join([intro.rstrip(), *said, *tables]) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit("this takes no arguments")
    write_whole(DOCS / "results.md", page())


if __name__ == "__main__":
    main()
