"""Write the table of methods and the counts in README.md from the tables that the package has.

    PYTHONPATH=tests:tests/helpers python scripts/write_readme.py

What is written stands between ``<!-- methods -->`` or ``<!-- count of … -->`` and ``<!-- end -->``.
"""

import re
from pathlib import Path

from architectures import ARCHITECTURES
from method_groups import group_of

from lorada.data.tasks import TASKS
from lorada.methods.lookup import method_named
from lorada.methods.table import METHODS

README = Path(__file__).resolve().parents[1] / "README.md"
# Families of decoders, encoders and encoder-decoders.
KINDS = {"llama": "decoders", "roberta": "encoders", "bart": "encoder–decoders"}


def method_table() -> str:
    """The names by group, then those that lack settings for a kind of model."""
    groups: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        groups.setdefault(group_of(method), []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {group} |" for group, names in groups.items()]
    rows.append("| `NAME+lmam` | any adapter without a map, with one on top |")
    text = ["| name | what |", "|---|---|", *rows]
    for family, kind in KINDS.items():
        found = {name: method_named(name) for name in METHODS}
        lacking = [
            f"`{name}`"
            for name, method in found.items()
            if method.parts and family not in method.parts | method.unpublished.parts
        ]
        if lacking:
            text.append(f"\nWithout settings for {kind}: {', '.join(lacking)}.")
    return "\n".join(text)


# The model types are those of docs/tested.md.
COUNTS = {"methods": len(METHODS), "tasks": len(TASKS) - 1, "model types": len(ARCHITECTURES)}


def written(page: str) -> str:
    """The page with the table and the counts as they are now."""
    page = _between("methods", f"\n{method_table()}\n", page)
    for what, number in COUNTS.items():
        page = _between(f"count of {what}", str(number), page)
    return page


def _between(mark: str, text: str, page: str) -> str:
    pattern = rf"(<!-- {mark} -->).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + text + found[2], page, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
