"""How the cost of the map grows: one attention call at SmolLM2's shape, forward and backward.

Each point compares the call with a map to the call alone. Beside the curves, what a layer of
LLaMA-7B keeps for its backward pass, and how much of a layer's multiplications the term is.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from performance_page import PICTURES, write_page
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from turns import Turn, in_turn

from lorada.attention import install
from lorada.files import write_whole
from lorada.maps import AttentionMap
from lorada.run import map_memory
from lorada.run.architectures import named_config

HEADS, GROUPS, WIDTH, RANK = 9, 3, 64, 2  # SmolLM2-135M's; the paper's rank
# By curve: its label, and (N, n, batch) of every point.
CURVES: dict[str, tuple[str, list[tuple[int, int, int]]]] = {
    "tokens": ("tokens N, a map of n = 128", [(128 * 2**i, 128, 1) for i in range(7)]),
    "length": ("tokens n under the map, N = 2048", [(2048, 32 * 2**i, 1) for i in range(7)]),
    "batch": ("samples of 512 tokens, n = 128", [(512, 128, 2**i) for i in range(6)]),
}


class Maps(torch.nn.Module):
    """One map, which is switched on and off."""

    seen, packable = None, False

    def __init__(self, length: int) -> None:
        super().__init__()
        shapes = [(HEADS, length, RANK), (HEADS, RANK, length)]
        factors = tuple(torch.randn(s, requires_grad=True) for s in shapes)
        self.found = [AttentionMap(factors, 1.0, "start", "token", None)]
        self.reach = length
        self.on = True

    def maps(self) -> list[AttentionMap]:
        """The map, where it is switched on."""
        return self.found if self.on else []


class Host(torch.nn.Module):
    """As much of an attention module as an attention function asks for."""

    is_causal = True
    num_key_value_groups = HEADS // GROUPS

    def __init__(self, length: int) -> None:
        super().__init__()
        self.lmam = Maps(length)
        self.config = named_config("llama-7b")


def call(tokens: int, length: int, batch: int) -> tuple[Host, Turn]:
    """A module and its attention call, forward and backward."""
    install()
    host = Host(length)
    shapes = [(batch, heads, tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def turn(t: int) -> None:
        output = attend(host, query, key, value, None, scaling=WIDTH**-0.5)[0]
        output.backward(torch.ones_like(output))

    return host, turn


def point(tokens: int, length: int, batch: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of a call with the map and without."""
    host, turn = call(tokens, length, batch)

    def switched(on: bool) -> Turn:
        def run(t: int) -> None:
            host.lmam.on = on
            turn(t)

        return run

    seconds = in_turn({"on": switched(True), "off": switched(False)}, repetitions)
    on, off = (1000 * statistics.median(seconds[side]) for side in ("on", "off"))
    return {"N": tokens, "n": length, "batch": batch, "on_ms": round(on, 3),
            "off_ms": round(off, 3), "share": round((on - off) / on, 4)}  # fmt: skip


def measure_growth(settings: Any, file: Path, page: Path) -> None:
    """Measure the curves, keep them, and draw them."""
    results = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    for name, (_, points) in CURVES.items():
        small = [(max(8, tokens // settings.factor), *rest) for tokens, *rest in points]
        results.setdefault("growth", {})[name] = [
            point(*where, settings.repetitions) for where in small
        ]
        print(name, *results["growth"][name], sep="\n")
    write_whole(file, json.dumps(results, indent=1) + "\n")
    draw(results["growth"], page.parent)
    if "settings" in results:
        write_page(results, page)


def draw(growth: dict[str, list[dict[str, float]]], folder: Path) -> None:
    """A picture of each curve: milliseconds with the map and without, and the map's share."""
    import matplotlib.pyplot as plt

    of = {"tokens": "N", "length": "n", "batch": "batch"}
    for name, points in growth.items():
        x = [row[of[name]] for row in points]
        figure, (times, shares) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        times.loglog(x, [row["on_ms"] for row in points], "o-", label="with the map")
        times.loglog(x, [row["off_ms"] for row in points], "s--", label="attention alone")
        times.set(ylabel="milliseconds, forward and backward")
        times.legend()
        shares.semilogx(x, [100 * row["share"] for row in points], "o-", color="black")
        shares.set(ylabel="share of the map, percent")
        shares.set_ylim(bottom=min(0, *(100 * row["share"] for row in points)))
        for axes in (times, shares):
            axes.set(xlabel=CURVES[name][0])
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        figure.savefig(folder / PICTURES[name], dpi=120)
        plt.close(figure)


def kept_bytes(batch: int) -> int:
    """What a layer at LLaMA-7B's shape keeps beyond attention alone, the factors included."""
    model = map_memory.mapped_model(named_config("llama-7b")).train()

    def kept(*, base: bool) -> int:
        return map_memory.kept_bytes(lambda: map_memory.attend(model, base=base, batch=batch), [])

    return kept(base=False) - kept(base=True)


def term_share() -> dict[str, Any]:
    """Floating-point operations of the term in a LLaMA-7B layer of 512 tokens, n = 128."""
    from lorada.run.operations import operations_table

    config = named_config("llama-7b")
    model = map_memory.mapped_model(config)
    counts = []
    for base in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            map_memory.attend(model, base=base)
        counts.append(counter.get_total_flops())
    width, inner, tokens = config.hidden_size, config.intermediate_size, map_memory.TOKENS
    layer = 2 * tokens * (4 * width**2 + 3 * width * inner) + 4 * tokens**2 * width
    term = counts[0] - counts[1]
    shares = [row for row in operations_table(2)["rows"] if row[0].startswith("share")]
    return {"term": term, "layer": layer, "share": term / layer, "table_2": shares}
