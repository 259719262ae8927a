"""The table and curves of what the map costs, for docs/performance.md and the terminal."""

from pathlib import Path
from typing import Any

from library.measuring import date_of
from library.page import markdown_table, print_table, write_marked

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SCRIPT = "measure_map_costs.py"
CURVE_NAMES = ("tokens", "length", "bidirectional", "batch")
PICTURES = {name: f"growth-{name}.png" for name in CURVE_NAMES}
HEADER = (
    "measure",
    "limit",
    "measured",
    "single turns",
    "second side without a map",
    "met",
    "date",
)

# By row: what it is, and the most that its ratio may be.
LIMITS: dict[str, tuple[str, float]] = {
    "forward_4x512": ("forward 4×512, with the map vs without", 1.02),
    "step_8x128": ("training step 8×128, with vs without", 1.04),
    "padded_8x128": ("the same with rows of 72 to 128 tokens, padded", 1.04),
    "step_1x2048": ("training step 1×2048, with vs without", 1.04),
    "paper_1x2048": ("training step 1×2048, ours vs the paper's form", 0.35),
    "decode_64": ("decoding 64 tokens after 256 (n = 128), with vs without", 1.02),
    "decode_padded": (
        "decoding 64 tokens in 16 rows, after 68 to 128 tokens, padded (n = 128), with vs without",
        1.04,
    ),
    "peak_1x2048": (
        "memory that the 1×2048 step adds to what is held before it, ours vs the paper's form",
        0.5,
    ),
    "lorada_la": ("LoRaDA-LA step 8×128 vs PEFT's LoRA with the same settings", 1.10),
}
# By figure of the row `start`: what it is, and the most seconds.
START_LIMITS = {
    "help_s": ("`lorada --help`", 0.3),
    "import_s": ("`import lorada` after `import peft`", 0.2),
}


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table, of the rows that are measured."""
    rows = results["rows"]
    found: list[tuple[str, ...]] = []
    for name, (what, limit) in LIMITS.items():
        if name in rows:
            row = rows[name]
            single = f"{row['lowest']:.3f}–{row['highest']:.3f}" if "lowest" in row else "–"
            single += f" in {row['turns']}" if "turns" in row else ""
            noise = "–"
            if off := row.get("noise"):
                noise = f"{off['ratio']:.3f} ({off['lowest']:.3f}–{off['highest']:.3f})"
            found.append((
                what + _detail(row), f"≤ {limit:.2f}", f"{row['ratio']:.3f}", single, noise,
                _met(row["ratio"], limit), date_of(row),
            ))  # fmt: skip
    if start := rows.get("start"):
        for figure, (what, limit) in START_LIMITS.items():
            found.append(_plain_line(what, start[figure], limit, "s", start))
    return found


def _plain_line(
    what: str, figure: float, limit: float, unit: str, row: dict[str, Any]
) -> tuple[str, ...]:
    measured = f"{figure:.3f} {unit}"
    return what, f"≤ {limit} {unit}", measured, "–", "–", _met(figure, limit), date_of(row)


def _detail(row: dict[str, Any]) -> str:
    """The memory in all, or the ratio of a step without a map to one in the paper's form."""
    if "ours_total_mb" in row:
        return f" (in all {row['ours_total_mb']:,} vs {row['papers_total_mb']:,} MB)"
    if "bare" in row:
        return f" (without a map: {row['bare']['ratio']:.3f})"
    return ""


def _met(figure: float, limit: float) -> str:
    return "yes" if figure <= limit else "**no**"


def curve_ends(points: list[dict[str, float]]) -> str:
    """What the map costs at both ends of a curve."""
    first, last = points[0], points[-1]
    axis = next((key for key in ("N", "n", "batch") if first[key] != last[key]), "N")
    ends = [
        f"{point['map_ms']:g} ms at {axis} = {point[axis]:,}, {point['share']:.1%} of the call"
        for point in (first, last)
    ]
    return f"The map alone: {'; '.join(ends)}."


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Put table and curves between the marks of the page."""
    write_marked(page, SCRIPT, marked_text(results))


def marked_text(results: dict[str, Any]) -> str:
    """What stands between the marks of the page."""
    settings, rows, growth = results["settings"], results["rows"], results.get("growth", {})
    machine, packages = settings["hardware"], settings["versions"]
    sizes = f"; sizes divided by {settings['factor']}" if settings["factor"] != 1 else ""
    text = (
        f"\n{machine['cpu']}, {settings['threads']} threads, fp32, torch {packages['torch']}, "
        f"transformers {packages['transformers']}; {settings['model']}{sizes}. *Single turns*: the "
        "lowest and highest ratio of one turn, and how many turns were counted. *Second side "
        "without a map*: its ratio to the first one, which is noise.\n\n"
        f"{markdown_table(HEADER, lines(results))}\n"
    )
    if "operations" in rows:
        found = rows["operations"]
        text += (
            f"\nOperations (N = 512, n = 128, LLaMA-7B): the term is {found['term']:,} of the "
            f"layer's {found['layer']:,} floating-point operations, {found['share']:.3%}. The "
            "paper's Table 2 prints 1.97e-5 of the model's, which counts the additions to a map "
            "that exists (`lorada table 2`).\n"
        )
    curves = [
        (
            f"![How the cost grows: {name}]({PICTURES[name]})",
            curve_ends(growth[name]["points"]),
            date_of(growth[name]),
        )
        for name in CURVE_NAMES if name in growth
    ]  # fmt: skip
    if curves:
        text += f"\n{markdown_table(('how the cost grows', 'at both ends', 'date'), curves)}\n"
    return text + "\n"


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    print_table(HEADER, lines(results))
