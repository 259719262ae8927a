"""Draws attention maps and the paper's figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorada.support.error_messages import needs_extra
from lorada.support.files import atomic_path

MAX_SIDE = 12  # inches, the side of a map; a larger picture is slow to draw and shows no more
LABELS_PER_INCH = 11  # of tokens, written across the side of a map, so that none overlap
WIDE_LABEL = 0.14  # inches that a label needs in the larger font
MAX_PANELS = 4  # layers whose map is drawn
# What the curves over the layers show: statistic → line style and label.
CURVES = {"map_negative_ratio": ("-o", "LMAM (Attn_s)"), "negative_ratio": ("--s", "fused")}


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
    side = min(max(3.2, 0.24 * len(tokens)), MAX_SIDE)
    # In a long text only some tokens are labelled, at equal distances.
    step = math.ceil(len(tokens) / (side * LABELS_PER_INCH))
    ticks = range(0, len(tokens), step)
    labels = [_literal(token) for token in tokens[::step]]
    font_size = 7 if side > WIDE_LABEL * len(labels) else 5

    figure = _figure(len(maps) * (side + 0.6), side + 0.9)
    axes = figure.subplots(1, len(maps), squeeze=False)
    for axis, (name, (values, negative_ratio)) in zip(axes[0], maps.items(), strict=True):
        image = _draw_signed(axis, values)
        axis.set_xticks(ticks, labels, rotation=90, fontsize=font_size)
        axis.set_yticks(ticks, labels, fontsize=font_size)
        if negative_ratio is None:
            axis.set_title(name)
        else:
            axis.set_title(f"{name}\n(Neg Rat: {100 * negative_ratio:.2f}%)")
        figure.colorbar(image, ax=axis, shrink=0.75)
    if title:
        figure.suptitle(_literal(title))
    _save(figure, paths)


def _draw_signed(axis: Any, values: Sequence[Sequence[float]]) -> Any:
    """Draw a signed map, centred at 0."""
    largest = max(max(map(abs, row)) for row in values)
    limit = largest or 1.0  # a map of zeros needs a scale as well
    return axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")


def layers_figure(ratios: dict[str, Any], *paths: Path) -> None:
    """Draw the maps of up to four layers and the negative ratio of all, like the paper's Figure 3.

    A panel is one head's map, of one row or whole, with its ratio in the title. The curves are
    means over heads and rows. ``ratios`` is what ``ratios_by_layer`` returns.
    """
    layers = ratios["layers"]
    drawn = _evenly_spaced(len(layers))
    figure = _figure(3.2 * len(drawn), 6)
    # Maps side by side, and one wide axis for the curves under all of them.
    map_names = [f"map{index}" for index in drawn]
    axes = figure.subplot_mosaic([map_names, ["ratio"] * len(drawn)])
    for index, map_name in zip(drawn, map_names, strict=True):
        axis = axes[map_name]
        image = _draw_signed(axis, layers[index]["map"])
        figure.colorbar(image, ax=axis, shrink=0.7)
        percent = 100 * layers[index]["shown_ratio"]
        axis.set_title(f"layer {index}, head 0, Neg Rat: {percent:.0f}%", fontsize=9)
    _draw_curves(axes["ratio"], ratios)
    _save(figure, paths)


def _evenly_spaced(layers: int) -> list[int]:
    """The numbers of the layers that are drawn, from the first to the last."""
    count = min(MAX_PANELS, layers)
    distance = (layers - 1) / max(count - 1, 1)
    # A set, because few layers may round to the same number.
    return sorted({round(panel * distance) for panel in range(count)})


def _draw_curves(axis: Any, ratios: dict[str, Any]) -> None:
    """Draw the negative ratio of each layer, of its map alone and of the fused map."""
    layers = ratios["layers"]
    numbers = range(len(layers))
    for name, (style, label) in CURVES.items():
        percents = [100 * layer[name] for layer in layers]
        axis.plot(numbers, percents, style, label=label)
    axis.axhline(50, color="grey", linewidth=0.8)
    axis.set(xlabel="layer", ylabel="negative ratio (%)", ylim=(0, 100), xticks=numbers)
    mean = f"mean over all heads and {ratios['rows']} rows of {ratios['task']}"
    extent = "whole" if ratios["whole"] else "of the first row"
    axis.set_title(f"{mean}\n(the maps above: {extent})", fontsize=9)
    axis.legend()


def sweep_figure(
    scores: Mapping[tuple[int, int], Sequence[float]], *paths: Path, title: str, metric: str
) -> None:
    """Draw the mean score for each number of heads and rank, like Figure 4 of the paper.

    ``scores`` are by (heads, rank), one per seed.
    """
    all_heads = sorted({heads for heads, _ in scores})
    all_ranks = sorted({rank for _, rank in scores})
    means = []
    for heads in all_heads:
        # Without a run a cell is NaN, which matplotlib leaves white.
        row = [statistics.fmean(scores.get((heads, rank), [math.nan])) for rank in all_ranks]
        means.append(row)
    figure = _figure(1.5 + 1.2 * len(all_ranks), 1.5 + 0.7 * len(all_heads))
    axis = figure.subplots()
    image = axis.imshow(means, cmap="cividis", aspect="auto")

    middle = (image.norm.vmin + image.norm.vmax) / 2
    for y, heads in enumerate(all_heads):
        for x, rank in enumerate(all_ranks):
            mean = means[y][x]
            text = f"{mean:.1f}"
            seed_scores = scores.get((heads, rank), [])
            if len(seed_scores) > 1:
                text += f"\n±{statistics.stdev(seed_scores):.1f}"
            # Low scores are dark in this colour map.
            colour = "white" if mean < middle else "black"
            axis.text(x, y, text, ha="center", va="center", color=colour)
    axis.set(xlabel="rank r", ylabel="heads h_s", title=title)
    axis.set_xticks(range(len(all_ranks)), all_ranks)
    axis.set_yticks(range(len(all_heads)), all_heads)
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
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
        figure.set_layout_engine("none")
