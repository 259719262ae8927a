"""docs/gpu.md, from what ``run.py`` has measured; without results it says so over empty tables."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from library.page import markdown_table

from lorada.support.files import write_atomic

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
NOT_YET = "**Not yet run**: nobody has run lorada on a GPU so far, and all tables are empty."
BEGIN = """# On a GPU

`make gpu` measures all of this on the first accelerator that torch finds, in at most an hour, and
writes this page (`benchmarks/gpu/run.py`). What is measured is kept in
`benchmarks/results/gpu.json`, so a run that was cut off goes on where it was. Each part has a tiny
form for a CPU, which the tests run. What a training on a GPU does by default is in
[Fine-tune an 8B model on one GPU](guides/one-gpu.md#3-what-is-chosen-by-itself).

A number with others in brackets is a median, with the lowest, the highest and how many there are.
Timers wait for the device.

"""


def text(results: Mapping[str, Any] | None, parts: Mapping[str, ModuleType]) -> str:
    """The page."""
    measured = results["parts"] if results else {}
    found = [BEGIN, (_about(results["settings"]) if results else NOT_YET) + "\n"]
    for number, (name, part) in enumerate(parts.items(), 1):
        rows = measured.get(name, {})
        done = {case: row for case, row in rows.items() if "reason" not in row}
        left = "".join(
            f"\nNot measured: {case} ({row['reason']}).\n"
            for case, row in rows.items()
            if "reason" in row
        )
        table = markdown_table(part.HEADER, [tuple(map(_cell, line)) for line in part.lines(done)])
        note = "" if done or left else "\nNot yet run.\n"
        found.append(f"\n## {number}. {part.TITLE}\n\n{part.ABOUT}\n\n{table}\n{note}{left}")
    return "".join(found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _about(settings: Mapping[str, Any]) -> str:
    machine, versions = settings["hardware"], settings["versions"]
    card = machine["accelerator"] or "no accelerator"
    packages = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    size = f", {settings['accelerator_gib']} GiB" if settings["accelerator_gib"] else ""
    tiny = " The tiny form, which only tries the script." if settings["tiny"] else ""
    return (
        f"{card}{size}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; {packages}.{tiny}"
    )


def write_page(
    results: Mapping[str, Any] | None, parts: Mapping[str, ModuleType], page: Path = PAGE
) -> None:
    """Write the page."""
    write_atomic(page, text(results, parts))
