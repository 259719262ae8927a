"""The Pareto set of a search as a table."""

from typing import Any

from rich.table import Table


def pareto_table(found: dict[str, Any]) -> Table:
    """What no other trial beats, the one with the fewest parameters first."""
    table = Table(
        "run", "serial", "parallel", "prefix", "layers", "parameters", "right",
        title=f"{len(found['pareto'])} of {len(found['trials'])} trials that no other beats",
        caption=f"sampler {found['sampler']}, one seed ({found['seed']})",
    )  # fmt: skip
    for row in found["pareto"]:
        chosen = row["configuration"]
        table.add_row(
            row["run"].rpartition("/")[2],
            *(str(chosen[name] or "—") for name in ("serial", "parallel", "prefix")),
            " ".join(map(str, chosen["layers"])),
            f"{row['parameters']:.4f}%",
            f"{row['accuracy']:.1f}%",
        )
    return table
