"""Writes the matrix of docs/tested.md: how many variants of a map run in each form of a batch.

PYTHONPATH=tests:tests/helpers python scripts/exact_page.py
"""

from pathlib import Path

from exact_cells import CELLS, COVERED, DECODERS, MATRIX, VARIANTS
from marked import with_part, write_part

PAGE = Path(__file__).parents[1] / "docs" / "tested.md"
SCRIPT = "scripts/exact_page.py"


def page(text: str) -> str:
    """The page with its matrix made anew."""
    return with_part(text, SCRIPT, table())


def table() -> str:
    """How many variants run in each cell."""
    names = (*DECODERS, "bert")
    lines = ["| form of the batch | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for cell in CELLS:
        counts = [sum(m[:2] == (name, cell) for m in MATRIX) for name in names]
        lines.append(f"| {cell} | " + " | ".join(str(count or "—") for count in counts) + " |")
    variants = ", ".join(f"`{name}`" for name in VARIANTS)
    end = (
        f"{len(MATRIX)} cells. The tests run {len(COVERED)}, in which every two of model, form and "
        f"variant come together. Variants: {variants}."
    )
    return "\n".join(["", *lines, "", end, ""])


if __name__ == "__main__":
    write_part(PAGE, SCRIPT, table())
