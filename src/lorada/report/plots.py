"""Loss curves and attention maps, as PNG and as text for a terminal."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorada.files import written_whole

BLOCKS = " ▁▂▃▄▅▆▇█"


def loss_chart(losses: Sequence[float], width: int = 60, height: int = 6) -> str:
    """A loss curve drawn with block characters, the highest and lowest value at its left."""
    losses = [loss for loss in losses if math.isfinite(loss)]
    if not losses:
        return "no loss was logged"
    columns = min(width, len(losses))
    edges = [round(i * len(losses) / columns) for i in range(columns + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges) if b > a]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [round((value - low) / span * (height * 8 - 1)) + 1 for value in means]
    lines = []
    for row in reversed(range(height)):
        bar = "".join(BLOCKS[max(0, min(8, level - row * 8))] for level in levels)
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} │{bar}")
    return "\n".join(lines)


def loss_png(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Loss over steps of one or more runs.

    Args:
        runs: name → history of a ``result.json`` (``step`` and ``loss``).
        path: PNG file to write.

    Raises:
        ImportError: if matplotlib is missing, naming the extra.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, history), style in zip(runs.items(), ("-", "--", "-.", ":"), strict=False):
        lines = [entry for entry in history if "loss" in entry]
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        axes.plot(steps, losses, style, marker=".", label=name)
    axes.set(xlabel="optimizer steps", ylabel="training loss")
    axes.grid(alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    _save(figure, path)


def attention_maps(
    tokens: Sequence[str],
    maps: dict[str, tuple[Sequence[Sequence[float]], float | None]],
    path: Path,
    title: str = "",
) -> None:
    """Heatmaps side by side, like Figure 1 of the paper.

    Red is positive and blue negative; the colour scale is centred at 0, and each panel has its
    own, because a softmax map and a learned map differ in size.

    Args:
        tokens: the tokens along both axes.
        maps: panel title → (queries × keys, share of entries below 0, or None for none to show).
        path: PNG file to write.
        title: line above the panels.

    Raises:
        ImportError: if matplotlib is missing, naming the extra.
    """
    plt = _pyplot()
    size = max(3.2, 0.24 * len(tokens))
    figure, axes = plt.subplots(
        1, len(maps), figsize=(len(maps) * (size + 0.6), size + 0.9), layout="constrained"
    )
    for axis, (name, (values, ratio)) in zip(axes, maps.items(), strict=True):
        limit = max(abs(value) for row in values for value in row) or 1.0
        image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
        axis.set_title(name if ratio is None else f"{name}\n(Neg Rat: {100 * ratio:.2f}%)")
        figure.colorbar(image, ax=axis, shrink=0.75)
    if title:
        figure.suptitle(title)
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lorada[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as fresh:
        figure.savefig(fresh, dpi=150)
    _pyplot().close(figure)
