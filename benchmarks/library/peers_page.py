"""The table of lorada beside its peers, for docs/performance.md and the terminal."""

from pathlib import Path
from typing import Any

from library.measuring import date_of
from library.page import markdown_table, print_table, write_marked

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SCRIPT = "measure_peers.py"
HEADER = (
    "measure", "limit", "measured", "single turns", "lorada / lorada", "both sides", "met", "date",
)  # fmt: skip
SIDES = {"trl": "TRL", "lm_eval": "lm-eval", "float32": "float32"}
# By row: what it is, the side that lorada is measured beside, and the most that a figure may be.
LIMITS: dict[str, tuple[str, str, dict[str, float]]] = {
    "train": ("LoRA, 8 rows of 48 tokens a step", "trl", {"time": 0.75, "memory": 0.60}),
    "less": ("the same, `activation_checkpointing=full`", "trl", {"time": 0.75, "memory": 0.60}),
    "both": ("the same, and TRL with gradient checkpointing", "trl", {}),
    "mixed": ("LoRA, packed rows of 16 to 512 tokens", "trl", {"time": 0.80, "memory": 0.70}),
    "bfloat16": ("LoRA in bfloat16, 8 rows of 48 tokens a step", "float32", {"time": 0.60}),
    "evaluate": ("likeliest of 2 to 5 candidates", "lm_eval", {"time": 0.33}),
    "start": ("`lorada train` until its first step", "", {"start": 5.0}),
}
WORK = {"evaluate": "the scoring alone"}
NAMES = {"time": "whole process", "memory": "memory"}
UNITS = {"memory": "MB"}  # all other figures are seconds


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table, of the rows that are measured."""
    found = []
    for name, (what, other, limits) in LIMITS.items():
        row = results["rows"].get(name)
        for figure, measured in row["figures"].items() if row else ():
            if figure == "processor":  # only in the file: it tells noise of a busy machine
                continue
            kind = NAMES.get(figure, WORK.get(name, "the steps alone"))
            title = f"{what}, beside {SIDES[other]}: {kind}" if other else what
            limit, noise = limits.get(figure), measured["noise"]
            unit = " s" if figure == "start" else ""
            sides = f"{measured['lorada']:,.1f}, {measured[other]:,.1f} " if other else ""
            found.append((
                title,
                "–" if limit is None else f"≤ {limit:.2f}{unit}",
                f"{measured['ratio']:.3f}{unit}",
                f"{measured['lowest']:.3f}–{measured['highest']:.3f} in {row['turns']}",
                f"{noise['ratio']:.3f} ({noise['lowest']:.3f}–{noise['highest']:.3f})",
                sides + UNITS.get(figure, "s") if other else "–",
                "–" if limit is None else "yes" if measured["ratio"] <= limit else "**no**",
                date_of(row),
            ))  # fmt: skip
    return found


def remarks(results: dict[str, Any]) -> list[str]:
    """What the table does not show: the work of both sides, and what the start consists of."""
    rows, found = results["rows"], []
    for name, (what, other, _) in LIMITS.items():
        if name not in rows or other != "trl":
            continue
        ours, theirs = (rows[name]["sides"][side] for side in ("lorada", other))
        found.append(
            f"{what}: both learned {ours['labelled']:,} tokens, lorada in {ours['steps']} steps of "
            f"{ours['read']:,} tokens with pads (mean loss {ours['loss']:.3f}), {SIDES[other]} in "
            f"{theirs['steps']} of {theirs['read']:,} ({theirs['loss']:.3f})."
        )
    if padded := rows.get("mixed", {}).get("trl_padded"):
        found.append(
            f"TRL without packing, once: {padded['time']:.1f} s ({padded['work']:.1f} s for the "
            f"steps) and {padded['memory']:,.0f} MB."
        )
    if row := rows.get("evaluate"):
        found.append(f"Questions: {row['same']:,} of {row['questions']:,} chosen answers agree.")
    if row := rows.get("start"):
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row["parts"].items())
        found.append(f"The start consists of: {parts}.")
    return found


def marked_text(results: dict[str, Any]) -> str:
    """What stands between the marks of the page."""
    about, packages = results["settings"], {}
    for row in results["rows"].values():
        for side in row.get("sides", {}).values():
            packages.update(side["versions"])
    versions = ", ".join(f"{name} {packages[name]}" for name in sorted(packages))
    items = "".join(f"- {one}\n" for one in remarks(results))
    return (
        f"\n{about['hardware']['cpu']}, {about['threads']} threads; {about['model']}; "
        f"{versions}.\n\n{markdown_table(HEADER, lines(results))}\n\n{items}\n"
    )


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    write_marked(page, SCRIPT, marked_text(results))


def show(results: dict[str, Any]) -> None:
    """Print the table and the remarks."""
    print_table(HEADER, lines(results))
    for one in remarks(results):
        print(one)
