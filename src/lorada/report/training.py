"""What a finished training looks like, in a terminal and as a picture."""

from pathlib import Path
from shlex import quote
from typing import Any

from lorada.report.figures import loss_chart, loss_png
from lorada.report.methods import NOT_FROM_THE_PAPER
from lorada.support.errors import saving


def draw_loss(run: Path, result: dict[str, Any]) -> str:
    """Write ``loss.png`` into a run folder, and say where it is or why there is none."""
    complete = f"The run itself is complete: lorada evaluate {quote(str(run))}"
    try:
        with saving(run / "loss.png", complete):
            loss_png({result["method"]: result["history"]}, run / "loss.png")
    except ImportError as error:
        return str(error)
    return f"loss curve: {run / 'loss.png'}"


def training_summary(result: dict[str, Any]) -> str:
    """The loss curve in characters, and a line on what was trained."""
    losses = [loss for entry in result["history"] if (loss := entry.get("loss")) is not None]
    count, effect = result["parameters"], result["effect_size"]
    text = f", effect size {effect:.2g}" if effect is not None else ""
    ours = result.get("settings_from", "").startswith(NOT_FROM_THE_PAPER)
    text += f"\nsettings {result['settings_from']}" if ours else ""
    return (
        f"{loss_chart(losses)}\n"
        f"{result['method']} on {result['model']}: {count['trainable']:,} parameters "
        f"({count['percent']:.3f}%), {result['steps']} steps in {result['wall_time_s']:.0f} s{text}"
    )
