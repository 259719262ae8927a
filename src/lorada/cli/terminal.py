"""Tables and summaries that commands print, and the loss curve that a training ends with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorada.paper.figures import loss_png
from lorada.paper.render import NOT_FROM_THE_PAPER, Page, cells, header_of
from lorada.support.errors import full_disk_in_one_line

BAR = 10  # characters of the longest bar; a layer's name fits beside it


# What the kinds of model are called that a method has settings for; others go by their own name.
KINDS = {
    "llama": "any decoder", "roberta": "any encoder", "deberta": "DeBERTa",
    "bart": "any encoder-decoder",
}  # fmt: skip


def methods_list(rows: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """One line for each method; ``rows`` is name → description by ``methods.lookup.describe``."""
    width = max(map(len, rows))
    lines = (f"{name:{width}}  {row['summary']}" for name, row in rows.items())
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def method_page(name: str, row: Mapping[str, Any]) -> str:
    """All facts of one method as YAML, with its settings for each kind of model."""
    named = {
        key: {KINDS.get(kind, kind): value for kind, value in row[key].items()}
        for key in ("not_from_the_paper", "settings")
    }
    facts = {key: one for key, one in {**row, **named}.items() if one and key != "models"}
    # Through JSON, since YAML would print settings that several kinds of model share only once.
    copied = json.loads(json.dumps({"method": name, **facts}))
    page: str = yaml.safe_dump(
        copied, allow_unicode=True, sort_keys=False, default_flow_style=None, width=10_000
    )
    return page.rstrip()


def draw_loss(run: Path, result: dict[str, Any]) -> str:
    """Write ``loss.png`` into a run folder; return its path or why there is none."""
    complete = f"The run itself is complete: lorada evaluate {quote(str(run))}"
    try:
        with full_disk_in_one_line(run / "loss.png", complete):
            loss_png({result["method"]: result["history"]}, run / "loss.png")
    except ImportError as error:
        return str(error)
    return f"loss curve: {run / 'loss.png'}"


def training_summary(result: dict[str, Any]) -> str:
    """The first and last loss, and a line on what was trained."""
    losses = [loss for entry in result["history"] if (loss := entry.get("loss")) is not None]
    curve = "no loss was logged"
    if losses:
        curve = f"loss {losses[0]:.3f}"
    if len(losses) > 1:
        curve += f" at first, {losses[-1]:.3f} at last"
    count, effect = result["parameters"], result["relative_norm"]
    text = f", relative norm {effect:.2g}" if effect is not None else ""
    if result.get("settings_from", "").startswith(NOT_FROM_THE_PAPER):
        text += f"\nsettings {result['settings_from']}"
    return (
        f"{curve}\n"
        f"{result['method']} on {result['model']}: {count['trainable']:,} parameters "
        f"({count['percent']:.3f}%), {result['steps']} steps in {result['wall_time_s']:.0f} s{text}"
    )


def effect_table(effects: Sequence[Any]) -> Table:
    """The relative norm of each layer's map on an answer, from ``answer_effect``, with a bar."""
    table = Table("layer", "relative norm", "on the answer", "", caption="‖Attn_s V‖ / ‖Attn V‖")
    largest = max(effect.answer for effect in effects)
    for one in effects:
        bar = round(BAR * one.answer / largest) if largest else 0
        table.add_row(one.layer, f"{one.text:.3g}", f"{one.answer:.3g}", "█" * bar)
    return table


def page_table(page: Page) -> Table:
    """A page of one of the paper's tables; published lines are dim."""
    table = Table(title=page.title)
    for name in header_of(page):
        table.add_column(name, overflow="fold")
    for line in page.lines:
        style = "dim" if line.source == "paper" else None
        table.add_row(*cells(page, line), style=style)
    return table
