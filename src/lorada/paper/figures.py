"""Draws attention maps and the paper's figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorada.support.error_messages import needs_extra
from lorada.support.files import atomic_path

LARGEST = 12  # inches, the side of a map; a larger picture is slow to draw and shows no more


def attention_maps(
    tokens: Sequence[str],
    maps: dict[str, tuple[Sequence[Sequence[float]], float | None]],
    *paths: Path,
    title: str = "",
) -> None:
    """Draw heatmaps side by side, like Figure 1 of the paper.

    Red is positive and blue negative. Each panel has its own scale, centred at 0, because softmax
    and learned maps differ in size. ``maps`` are panel title → (queries × keys, share of entries
    below 0 or None to show none).
    """
    size = min(max(3.2, 0.24 * len(tokens)), LARGEST)
    # In a long text only every second or third token is labelled, so that labels do not overlap.
    every = math.ceil(len(tokens) / (size * 11))
    ticks, names = range(0, len(tokens), every), [_literal(t) for t in tokens[::every]]
    letters = {"fontsize": 7 if size > 0.14 * len(names) else 5}
    figure = _figure(len(maps) * (size + 0.6), size + 0.9)
    axes = figure.subplots(1, len(maps), squeeze=False)
    for axis, (name, (values, ratio)) in zip(axes[0], maps.items(), strict=True):
        image = _signed(axis, values)
        axis.set_xticks(ticks, names, rotation=90, **letters)
        axis.set_yticks(ticks, names, **letters)
        axis.set_title(name if ratio is None else f"{name}\n(Neg Rat: {100 * ratio:.2f}%)")
        figure.colorbar(image, ax=axis, shrink=0.75)
    if title:
        figure.suptitle(_literal(title))
    _save(figure, paths)


def _signed(axis: Any, values: Sequence[Sequence[float]]) -> Any:
    """Draw a signed map, centred at 0."""
    limit = max(abs(value) for row in values for value in row) or 1.0
    return axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")


def layers_figure(found: dict[str, Any], *paths: Path) -> None:
    """Draw the maps of up to four layers and the negative ratio of all, like the paper's Figure 3.

    A panel is one head's map, of one row or whole, with its ratio in the title. The curves are
    means over heads and rows. ``found`` is what ``ratios_by_layer`` returns.
    """
    layers = found["layers"]
    count = min(4, len(layers))
    chosen = sorted({round(i * (len(layers) - 1) / max(count - 1, 1)) for i in range(count)})
    figure = _figure(3.2 * len(chosen), 6)
    axes = figure.subplot_mosaic([[f"map{i}" for i in chosen], ["ratio"] * len(chosen)])
    for index in chosen:
        axis = axes[f"map{index}"]
        figure.colorbar(_signed(axis, layers[index]["map"]), ax=axis, shrink=0.7)
        ratio = 100 * layers[index]["shown_ratio"]
        axis.set_title(f"layer {index}, head 0, Neg Rat: {ratio:.0f}%", fontsize=9)
    numbers = range(len(layers))
    ratio_axis = axes["ratio"]
    for name, style, label in (
        ("map_negative_ratio", "-o", "LMAM (Attn_s)"),
        ("negative_ratio", "--s", "fused"),
    ):
        ratio_axis.plot(numbers, [100 * one[name] for one in layers], style, label=label)
    ratio_axis.axhline(50, color="grey", linewidth=0.8)
    ratio_axis.set(xlabel="layer", ylabel="negative ratio (%)", ylim=(0, 100), xticks=numbers)
    mean = f"mean over all heads and {found['rows']} rows of {found['task']}"
    above = "whole" if found["whole"] else "of the first row"
    ratio_axis.set_title(f"{mean}\n(the maps above: {above})", fontsize=9)
    ratio_axis.legend()
    _save(figure, paths)


def sweep_figure(
    scores: Mapping[tuple[int, int], Sequence[float]], *paths: Path, title: str, metric: str
) -> None:
    """Draw the mean score for each number of heads and rank, like Figure 4 of the paper.

    ``scores`` are by (heads, rank), one per seed.
    """
    heads, ranks = (sorted({key[i] for key in scores}) for i in range(2))
    grid = [[statistics.fmean(scores.get((h, r), [math.nan])) for r in ranks] for h in heads]
    figure = _figure(1.5 + 1.2 * len(ranks), 1.5 + 0.7 * len(heads))
    axis = figure.subplots()
    image = axis.imshow(grid, cmap="cividis", aspect="auto")
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for line, row in enumerate(grid):
        for column, value in enumerate(row):
            each = scores.get((heads[line], ranks[column]), [])
            spread = f"\n±{statistics.stdev(each):.1f}" if len(each) > 1 else ""
            colour = "white" if value < middle else "black"
            axis.text(column, line, f"{value:.1f}{spread}", ha="center", va="center", color=colour)
    axis.set(xlabel="rank r", ylabel="heads h_s", title=title)
    axis.set_xticks(range(len(ranks)), ranks)
    axis.set_yticks(range(len(heads)), heads)
    figure.colorbar(image, ax=axis, label=metric)
    _save(figure, paths)


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    with needs_extra("plots"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _literal(text: str) -> str:
    """Escape dollars, which would begin a formula."""
    return text.replace("$", r"\$")


def _save(figure: Any, paths: Sequence[Path]) -> None:
    """Write a figure to files, PNG or SVG by their names; the layout is computed once."""
    for path in paths:
        with atomic_path(path) as fresh:
            figure.savefig(fresh, dpi=150)
        figure.set_layout_engine("none")
