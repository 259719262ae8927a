"""Writes the table of the fields that rows may have into docs/guides/train.md.

python scripts/rows_page.py
"""

from pathlib import Path

from marked import write_part

from lorada.data.row_forms import field_table

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs/guides/train.md"
    write_part(page, "scripts/rows_page.py", f"\n{field_table()}\n")
