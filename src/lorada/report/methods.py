"""The list of methods, and one of them in full, as ``lorada methods`` prints them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

NOT_FROM_THE_PAPER = "not from the paper"


def methods_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per method: what it is, its formula, how it runs, where, and where it is from.

    Args:
        rows: name → what ``plan.describe`` says of it.
    """
    table = Table("method", "what, formula", "runs", "models", "settings from, paper")
    table.show_lines = True
    for name, row in rows.items():
        table.add_row(
            name,
            Text(f"{row['summary']}\n{row['formula']}"),
            Text("\n".join(row["runs"])),
            Text("\n".join(_marked(row, model) for model in row["models"])),
            Text(f"{row['source']}\n{row['paper']}", overflow="fold"),
        )
    return table


def method_page(name: str, row: Mapping[str, Any]) -> RenderableType:
    """One method in full, with its settings for each kind of model."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("method", name)
    for key in ("summary", "formula", "paper", "source"):
        facts.add_row(key, Text(row[key], overflow="fold"))
    facts.add_row("runs", Text("\n".join(row["runs"])))
    facts.add_row("models", Text(", ".join(_marked(row, model) for model in row["models"])))
    for source in dict.fromkeys(row["not_from_the_paper"].values()):
        facts.add_row(NOT_FROM_THE_PAPER, Text(source, overflow="fold"))
    if not row["settings"]:
        return facts
    table = Table("model", "part", "settings")
    for model, parts in row["settings"].items():
        for part, settings in parts.items():
            words = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            table.add_row(Text(_marked(row, model)), part, Text(words or "defaults"))
    return Group(facts, table)


def _marked(row: Mapping[str, Any], model: str) -> str:
    """A kind of model, with a word on settings that the paper does not have."""
    return f"{model} ({NOT_FROM_THE_PAPER})" if model in row["not_from_the_paper"] else model
