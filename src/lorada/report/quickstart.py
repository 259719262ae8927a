"""The quickstart's table and pictures."""

from pathlib import Path
from typing import Any

from rich.table import Table

from lorada.report.figures import attention_maps, loss_png
from lorada.support.files import write_whole


def comparison_table(comparison: dict[str, Any]) -> Table:
    """Before, LoRA and LoRaDA-LA, as they came out."""
    first = comparison["rows"][0]
    table = Table(
        "method", "parameters", "exact match", "loss", "training", "effect size",
        title=f"{first['n']} held-out rows, one seed ({comparison['seed']})",
        caption=f"{comparison['hardware']['cpu']}, {comparison['hardware']['cores']} cores",
    )  # fmt: skip
    for row in comparison["rows"]:
        effect = row.get("effect_size")
        table.add_row(
            row["method"],
            f"{row['parameters']:,}",
            f"{row['exact_match']:.1f}%",
            f"{row['loss']:.3f}",
            f"{row['seconds']:.0f} s" if row["seconds"] else "—",
            "—" if effect is None else f"{effect:.3f}",
        )
    return table


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """The same table as Markdown, with what it was measured on."""
    table = comparison_table(comparison)
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    lines.insert(1, "|---" * len(columns) + "|")
    return "\n".join([*lines, "", f"{table.title}; {table.caption}.", ""])


def draw(comparison: dict[str, Any], output: Path) -> list[str]:
    """Write the table, the loss curves and the heatmaps; say where they are, or what they need."""
    write_whole(output / "comparison.md", comparison_markdown(comparison))
    picture = comparison["picture"]
    try:
        loss_png(comparison["histories"], output / "loss.png")
        attention_maps(
            picture["tokens"],
            picture["maps"],
            output / "maps.png",
            title=f"{picture['layer']}, head {picture['head']}",
        )
    except ImportError as error:
        return [str(error)]
    return [f"loss curves: {output / 'loss.png'}", f"maps, like Figure 1: {output / 'maps.png'}"]
