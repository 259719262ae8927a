"""The table of docs/performance.md, written between its markers, and the same on the terminal."""

from pathlib import Path
from typing import Any

import stored
from rich.console import Console
from rich.table import Table

from lorada.support.files import write_whole

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
NAMES = ("tokens", "length", "bidirectional", "batch")
PICTURES = {name: f"growth-{name}.png" for name in NAMES}
BEGIN, END = "<!-- written by benchmarks/performance.py -->\n", "<!-- until here -->"
HEADER = ("measure", "must reach", "measured", "turn by turn", "noise alone", "met")

# By row: what it is, and the most its ratio may be.
LIMITS: dict[str, tuple[str, float]] = {
    "forward_4x512": ("forward 4×512, the map on vs off", 1.02),
    "step_8x128": ("training step 8×128, on vs off", 1.04),
    "padded_8x128": ("the same with rows of 72 to 128 tokens, padded", 1.04),
    "step_1x2048": ("training step 1×2048, on vs off", 1.04),
    "paper_1x2048": ("training step 1×2048, ours vs the paper's form", 0.35),
    "decode_64": ("decoding 64 tokens after 256 (n = 128), on vs off", 1.02),
    "peak_1x2048": (
        "peak memory of the 1×2048 step beyond what stood there before, ours vs the paper's form",
        0.5,
    ),
    "lorada_la": ("LoRaDA-LA step 8×128 vs PEFT's LoRA with the same settings", 1.10),
}
STARTS = {"help_s": ("`lorada --help`", 0.3), "methods_s": ("`lorada methods`", 1.0),
          "import_s": ("`import lorada` beyond `import peft`", 0.2)}  # fmt: skip
MEGABYTES = 0.2
OLDER = "older code"


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table, of the rows that are measured."""
    rows, newest = results["rows"], stored.newest_code(results)
    found: list[tuple[str, ...]] = []
    for name, (what, limit) in LIMITS.items():
        if name in rows:
            row = rows[name]
            label = what + _more(row) + _age(row, newest)
            turns = f"{row['lowest']:.3f}–{row['highest']:.3f}" if "lowest" in row else "–"
            turns += f" in {row['turns']}" if "turns" in row else ""
            alone = "–"
            if noise := row.get("noise"):
                alone = f"{noise['ratio']:.3f} ({noise['lowest']:.3f}–{noise['highest']:.3f})"
            found.append((label, f"≤ {limit:.2f}", f"{row['ratio']:.3f}", turns,
                          alone, _met(row['ratio'], limit)))  # fmt: skip
    kept = rows.get("saved_bytes", {})
    for batch, size in kept.get("mb", {}).items():
        what = f"kept for backward in a LLaMA-7B layer, batch {batch}, beyond attention's own"
        what += _age(kept, newest)
        found.append((what, f"≤ {MEGABYTES} MB", f"{size:.3f} MB", "–", "–", _met(size, MEGABYTES)))
    for key, (what, limit) in STARTS.items():
        if "start" in rows:
            seconds, label = rows["start"][key], what + _age(rows["start"], newest)
            found.append(
                (label, f"≤ {limit} s", f"{seconds:.3f} s", "–", "–", _met(seconds, limit))
            )
    return found


def _more(row: dict[str, Any]) -> str:
    """In the row of peaks how much there is in all, beside the paper's form what has no map."""
    if "ours_total_mb" in row:
        return f" (in all {row['ours_total_mb']:,} vs {row['papers_total_mb']:,} MB)"
    if "bare" in row:
        return f" (without a map: {row['bare']['ratio']:.3f})"
    return ""


def _ends(points: list[dict[str, float]]) -> str:
    """What the map costs at both ends of a curve."""
    first, last = points[0], points[-1]
    axis = next((key for key in ("N", "n", "batch") if first[key] != last[key]), "N")
    said = [
        f"{point['map_ms']:g} ms at {axis} = {point[axis]:,}, {point['share']:.1%} of the call"
        for point in (first, last)
    ]
    return f"The map alone: {'; '.join(said)}."


def _age(row: dict[str, Any], newest: str | None) -> str:
    return f" ({OLDER})" if stored.is_older(row, newest) else ""


def _met(figure: float, limit: float) -> str:
    return "yes" if figure <= limit else "**no**"


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table between the markers of the page, or make a page of nothing else."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{BEGIN}{END}\n"
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    write_whole(page, f"{before}{BEGIN}{written(results)}{END}{after}")


def written(results: dict[str, Any]) -> str:
    """What stands between the markers."""
    settings, rows, growth = results["settings"], results["rows"], results.get("growth", {})
    newest = stored.newest_code(results)
    machine, packages = settings["hardware"], settings["versions"]
    table = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    table += ["| " + " | ".join(line) + " |" for line in lines(results)]
    sizes = f"; sizes divided by {settings['factor']}" if settings["factor"] != 1 else ""
    text = (
        f"\n{machine['cpu']}, {settings['threads']} threads, fp32, torch {packages['torch']}, "
        f"transformers {packages['transformers']}; {settings['model']}, "
        f"“in 9”: turns of every side, after one that does not count{sizes}.\n\n"
        + "\n".join(table)
        + "\n"
    )
    if "operations" in rows:
        found = rows["operations"]
        text += (
            f"\nOperations (N = 512, n = 128, LLaMA-7B): the term is {found['term']:,} of the "
            f"layer's {found['layer']:,} floating-point operations, {found['share']:.3%}. The "
            "paper's Table 2 prints 1.97e-5 of the model's, which counts the additions to a map "
            f"that exists (`lorada table 2`){_age(found, newest)}.\n"
        )
    for name in (name for name in NAMES if name in growth):
        text += f"\n![How the cost grows: {name}]({PICTURES[name]}){_age(growth[name], newest)}\n"
        text += f"\n{_ends(growth[name]['points'])}\n"
    if any(stored.is_older(row, newest) for row in (*rows.values(), *growth.values())):
        text += (
            f"\n“{OLDER.capitalize()}”: measured with another state of `src/lorada` than the "
            "newest figure here, or with one that is not known.\n"
        )
    return text + "\n"


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for line in lines(results):
        table.add_row(*line)
    Console().print(table)
