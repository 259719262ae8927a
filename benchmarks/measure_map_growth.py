"""Measure how the cost of the map grows with the tokens, its length and the batch.

    python benchmarks/measure_map_growth.py                 # the curves that are missing
    python benchmarks/measure_map_growth.py --rows tokens   # this curve again

A point of a curve is one attention call at the shape of SmolLM2, forward and backward, three times:
by a module that holds a map (``on``), by the attention function itself (``off``), and the map alone
(``map``), which is the first call around a function that returns an output made before. The map is
measured by itself because attention can take a hundred times as long, and the difference of the
first two would be noise. Before a point is timed, a short call is checked against the paper's form.
Writes benchmarks/results/performance.json after each curve, and docs/performance.md with pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from library import paper_attention
from library.agreement import check_tensor
from library.map_checks import LONGEST, ROWS
from library.map_costs_page import PAGE, PICTURES, write_page
from library.measuring import Request, Results, measure_rows, read_request, run_script
from library.timing import Action, median_ms, time_in_turns
from measure_map_costs import RESULTS, Settings
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorada import LmamConfig, LoradaConfig
from lorada.attention.with_parts import with_parts

HEADS, GROUPS, WIDTH, RANK = 9, 3, 64, 2  # of SmolLM2-135M; the paper's rank
Attend = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Curve:
    """Points of a curve.

    Attributes:
        label: of the x axis.
        axis: what goes along it: ``N``, ``n`` or ``batch``.
        points: (N tokens, n tokens of the map, batch).
        causal: whether earlier keys are seen only.
    """

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
    """An attention module of this shape with a map that is not zero."""
    config = LlamaConfig(
        hidden_size=8 * HEADS, intermediate_size=8, vocab_size=8, num_hidden_layers=1,
        head_dim=WIDTH, num_attention_heads=HEADS, num_key_value_heads=GROUPS,
    )  # fmt: skip
    part = LmamConfig(rank=RANK, length=length, init_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), LoradaConfig(parts=[part])).train()
    module: nn.Module = model.get_base_model().model.layers[0].self_attn
    module.is_causal = causal  # type: ignore[assignment]
    return module


def calls(module: nn.Module, tokens: int, batch: int) -> dict[str, Action]:
    """Calls to time; each returns the output and the gradients of everything it reads.

    Returns:
        ``on``, ``off``, ``map``, and for few tokens ``paper``, the paper's form.
    """
    shapes = [(batch, heads, tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    factors = [p for name, p in module.named_parameters() if ".lora_w_" in name]
    grad = torch.randn(batch, tokens, HEADS, WIDTH)
    with_map: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def call_of(attend: Attend, leaves: list[Tensor], mask: Tensor | None = None) -> Action:
        def call(turn: int) -> list[Tensor]:
            output = attend(module, *inputs, mask, scaling=WIDTH**-0.5)[0]
            return [output, *torch.autograd.grad(output, leaves, grad)]

        return call

    ready_output = torch.randn_like(grad)
    map_alone = with_parts(lambda *args, **kwargs: (ready_output, None))
    found = {
        "on": call_of(with_map, [*inputs, *factors]),
        "off": call_of(with_map.__wrapped__, inputs),
        "map": call_of(map_alone, [inputs[2], *factors]),
    }
    if tokens <= LONGEST:
        unseen = torch.full((tokens, tokens), -torch.inf).triu(1) if module.is_causal else None
        found["paper"] = call_of(paper_attention.attend, [*inputs, *factors], unseen)
    return found


def check(module: nn.Module, tokens: int, batch: int) -> None:
    """Check a short call against the paper's form.

    Raises:
        DisagreementError: naming what differs.
    """
    short = calls(module, min(tokens, LONGEST), min(batch, ROWS))
    on, off, alone, paper = (short[name](0) for name in ("on", "off", "map", "paper"))
    names = ["output", *(f"gradient of {x}" for x in ("Q", "K", "V", "W_a", "W_b"))]
    for what, found, wanted in zip(names, on, paper, strict=True):
        check_tensor(f"the {what}", found.detach(), wanted.detach())
    own = [on[3] - off[3], *on[4:]]
    for what, found, wanted in zip(names[3:], alone[1:], own, strict=True):
        check_tensor(f"the map's own {what}", found, wanted)


def measure_point(
    tokens: int, length: int, batch: int, repetitions: int, *, causal: bool
) -> dict[str, float]:
    """Milliseconds of a call with the map, without it, and of the map alone."""
    module = module_with_map(length, causal=causal)
    check(module, tokens, batch)
    every = calls(module, tokens, batch)
    seconds, _ = time_in_turns({name: every[name] for name in ("on", "off", "map")}, repetitions)
    on, off, alone = (median_ms(seconds[name], 6) for name in ("on", "off", "map"))
    return {"N": tokens, "n": length, "batch": batch, "on_ms": round(on, 3),
            "off_ms": round(off, 3), "map_ms": round(alone, 3),
            "share": round(alone / (alone + off), 4)}  # fmt: skip


def run(request: Request) -> Results:
    """Measure the curves of a request; ``measure_rows`` says what it raises.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib.pyplot  # noqa: F401  # so that it fails now, not after the first curve

    settings = request.settings

    def measure(name: str) -> dict[str, Any]:
        points = [
            measure_point(max(8, tokens // settings.factor), length, batch, settings.repetitions,
                          causal=CURVES[name].causal)
            for tokens, length, batch in CURVES[name].points
        ]  # fmt: skip
        print(name, *points, sep="\n")
        return {"points": points}

    def show(name: str, results: Results) -> None:
        draw(name, results["growth"][name]["points"], request.page.parent)
        write_page(results, request.page)

    return measure_rows(request, CURVES, measure, show, section="growth")


def draw(name: str, points: list[dict[str, float]], folder: Path) -> None:
    """Draw milliseconds with the map, without it and of the map alone, and the map's share."""
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


def main() -> None:
    run_script(run, read_request(__doc__, CURVES, Settings, RESULTS, PAGE))


if __name__ == "__main__":
    main()
