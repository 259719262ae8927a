"""How the cost of the map grows: one attention call at SmolLM2's shape, forward and backward.

Each point has the call of an attention module that holds a map, the attention function itself, and
the map alone: the same call around a function that only hands out an output made before. Where
attention takes a hundred times as long, the difference of the first two would be noise. Before a
point is timed, a short call is checked against the paper's own form. Beside the curves: what a
layer of LLaMA-7B keeps for its backward pass, and how much of its multiplications the term is.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papers_form
import stored
import torch
from checked import LONGEST, ROWS, agree
from peft import get_peft_model
from performance_page import PICTURES, write_page
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from turns import Turn, in_turn

from lorada import LmamConfig, LoradaConfig
from lorada.attention.attend import with_parts
from lorada.experiments import table3_memory
from lorada.runs.models.architectures import named_config

HEADS, GROUPS, WIDTH, RANK = 9, 3, 64, 2  # SmolLM2-135M's; the paper's rank
Attend = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Curve:
    """Points (N, n, batch) and what goes along the x axis."""

    label: str
    axis: str
    points: list[tuple[int, int, int]]
    causal: bool = True


LENGTHS = [(2048, 32 * 2**i, 1) for i in range(7)]
CURVES = {
    "tokens": Curve("tokens N, a map of n = 128", "N", [(128 * 2**i, 128, 1) for i in range(7)]),
    "length": Curve("tokens n under the map, N = 2048", "n", LENGTHS),
    "bidirectional": Curve("tokens n, N = 2048, every key seen", "n", LENGTHS, False),
    "batch": Curve("samples of 512 tokens, n = 128", "batch", [(512, 128, 2**i) for i in range(6)]),
}


def module_with_map(length: int, *, causal: bool) -> nn.Module:
    """A LLaMA's attention module of this shape, with a map off its start."""
    config = LlamaConfig(
        hidden_size=8 * HEADS, intermediate_size=8, vocab_size=8, num_hidden_layers=1,
        head_dim=WIDTH, num_attention_heads=HEADS, num_key_value_heads=GROUPS,
    )  # fmt: skip
    part = LmamConfig(rank=RANK, length=length, init_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), LoradaConfig(parts=[part])).train()
    module: nn.Module = model.get_base_model().model.layers[0].self_attn
    module.is_causal = causal  # type: ignore[assignment]
    return module


def turns_of(module: nn.Module, tokens: int, batch: int) -> dict[str, Turn]:
    """A call with the map, without, and of the map alone; each gives output and all gradients."""
    shapes = [(batch, heads, tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    factors = [p for name, p in module.named_parameters() if ".lora_w_" in name]
    grad = torch.randn(batch, tokens, HEADS, WIDTH)
    with_map: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def turn_of(attend: Attend, leaves: list[Tensor], mask: Tensor | None = None) -> Turn:
        def turn(t: int) -> list[Tensor]:
            output = attend(module, *inputs, mask, scaling=WIDTH**-0.5)[0]
            return [output, *torch.autograd.grad(output, leaves, grad)]

        return turn

    made = torch.randn_like(grad)
    around_nothing = with_parts(lambda *args, **kwargs: (made, None))
    turns = {
        "on": turn_of(with_map, [*inputs, *factors]),
        "off": turn_of(with_map.__wrapped__, inputs),
        "map": turn_of(around_nothing, [inputs[2], *factors]),
    }
    if tokens <= LONGEST:
        unseen = torch.full((tokens, tokens), -torch.inf).triu(1) if module.is_causal else None
        turns["paper"] = turn_of(papers_form.attend, [*inputs, *factors], unseen)
    return turns


def check(module: nn.Module, tokens: int, batch: int) -> None:
    """A short call gives what the paper's form gives.

    Raises:
        DisagreementError: naming what differs.
    """
    turns = turns_of(module, min(tokens, LONGEST), min(batch, ROWS))
    on, off = turns["on"](0), turns["off"](0)
    names = ["output", *(f"gradient of {x}" for x in ("Q", "K", "V", "W_a", "W_b"))]
    for what, found, wanted in zip(names, on, turns["paper"](0), strict=True):
        agree(f"the {what}", found.detach(), wanted.detach())
    own = [on[3] - off[3], *on[4:]]
    for what, found, wanted in zip(names[3:], turns["map"](0)[1:], own, strict=True):
        agree(f"the map's own {what}", found, wanted)


def point(
    tokens: int, length: int, batch: int, repetitions: int, *, causal: bool
) -> dict[str, float]:
    """Milliseconds of a call with the map, without, and of the map alone."""
    module = module_with_map(length, causal=causal)
    check(module, tokens, batch)
    turns = turns_of(module, tokens, batch)
    seconds = in_turn({name: turns[name] for name in ("on", "off", "map")}, repetitions)
    on, off, alone = (1000 * statistics.median(seconds[side]) for side in ("on", "off", "map"))
    return {"N": tokens, "n": length, "batch": batch, "on_ms": round(on, 3),
            "off_ms": round(off, 3), "map_ms": round(alone, 3),
            "share": round(alone / (alone + off), 4)}  # fmt: skip


def measure_growth(
    settings: Any, names: list[str], file: Path, page: Path, *, overwrite: bool = False
) -> None:
    """Measure curves, and keep and draw each as it comes.

    Raises:
        ValueError: if other results are there, or if a call does not compute what it should.
        ImportError: without matplotlib.
    """
    import matplotlib.pyplot  # noqa: F401  # misses now rather than after the first curve

    torch.set_num_threads(settings.threads)
    stored.code()  # of what is about to run, whatever becomes of the files meanwhile
    results = stored.load(settings, file, overwrite=overwrite)
    done = results.setdefault("growth", {})
    for name in stored.wanted(done, CURVES, names, overwrite=overwrite):
        curve = CURVES[name]
        points = [
            point(max(8, tokens // settings.factor), length, batch, settings.repetitions,
                  causal=curve.causal)
            for tokens, length, batch in curve.points
        ]  # fmt: skip
        print(name, *points, sep="\n")
        stored.keep(results, "growth", name, {"points": points}, file)
        draw(name, points, page.parent)
        write_page(results, page)


def draw(name: str, points: list[dict[str, float]], folder: Path) -> None:
    """Milliseconds with the map, without, and of the map alone, and the map's share."""
    import matplotlib.pyplot as plt

    x = [row[CURVES[name].axis] for row in points]
    figure, (times, shares) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    times.loglog(x, [row["on_ms"] for row in points], "o-", label="with the map")
    times.loglog(x, [row["off_ms"] for row in points], "s--", label="attention alone")
    times.loglog(x, [row["map_ms"] for row in points], "^:", label="the map alone")
    times.set(ylabel="milliseconds, forward and backward")
    times.legend()
    shares.semilogx(x, [100 * row["share"] for row in points], "o-", color="black")
    shares.set(ylabel="share of the map, percent")
    shares.set_ylim(bottom=0)
    for axes in (times, shares):
        axes.set(xlabel=CURVES[name].label)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(folder / PICTURES[name], dpi=120)
    plt.close(figure)


def kept_bytes(batch: int) -> int:
    """What a layer at LLaMA-7B's shape keeps beyond attention alone, the factors included."""
    model = table3_memory.mapped_model(named_config("llama-7b")).train()

    def kept(*, base: bool) -> int:
        return table3_memory.kept_bytes(
            lambda: table3_memory.attend(model, base=base, batch=batch), []
        )

    return kept(base=False) - kept(base=True)


def term_share() -> dict[str, Any]:
    """Floating-point operations of the term in a LLaMA-7B layer of 512 tokens, n = 128."""
    from lorada.experiments.table2_operations import operations_table

    config = named_config("llama-7b")
    model = table3_memory.mapped_model(config)
    counts = []
    for base in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            table3_memory.attend(model, base=base)
        counts.append(counter.get_total_flops())
    width, inner, tokens = config.hidden_size, config.intermediate_size, table3_memory.TOKENS
    layer = 2 * tokens * (4 * width**2 + 3 * width * inner) + 4 * tokens**2 * width
    term = counts[0] - counts[1]
    shares = [row for row in operations_table(2)["rows"] if row[0].startswith("share")]
    return {"term": term, "layer": layer, "share": term / layer, "table_2": shares}
