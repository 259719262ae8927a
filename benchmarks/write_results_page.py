"""Write docs/results.md: the findings, then every table of the paper that was run here.

The findings are written by hand in docs/results/findings.md; the tables are read from docs/results.
``lorada table N --scale local --data-dir DIR --resume`` runs what is missing of a table.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lorada.experiments.table_spec import load_table
from lorada.support.files import write_atomic

DOCS = Path(__file__).parents[1] / "docs"
NUMBERS = [*range(4, 15), 18]
INTRO = """# The paper's tables, run here

Each table below was printed by `lorada table N --scale local`, with `--rows`, `--tasks` and
`--seeds` for what it shows. The models are small and the data are samples of the real rows; the
protocols are the paper's, whose own numbers stand beside ours. Our score and the paper's score of a
row cannot be compared, and the list above each table says why. Our rows can be compared to each
other. Every `result.json` is under `docs/results`, where `--resume` finds it. Tables 2
and 3 are computed: `lorada table 2`, `lorada table 3`. This page is made by
`python benchmarks/write_results_page.py`.

{runs} runs, {hours:.1f} hours of training in all. Other programs ran on the same two cores, so a
run alone takes no longer than its minutes say.
{missing}"""


def results_of(folder: Path) -> list[dict[str, Any]]:
    """The results of a table's runs."""
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
        # Beside table.md there may be a table of fewer tasks, trained together.
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
    text = [findings.read_text(encoding="utf-8").strip()] if findings.is_file() else []
    return "\n\n".join([intro.rstrip(), *text, *tables]) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit("this takes no arguments")
    write_atomic(DOCS / "results.md", page())


if __name__ == "__main__":
    main()
