"""Measure how the cost of a training step grows with rows, their length and the vocabulary.

    python benchmarks/measure_training_growth.py                  # the curves that are missing
    python benchmarks/measure_training_growth.py --rows vocabulary   # this curve again

A point of a curve is one step of LoRA, forward and backward, at the width of SmolLM2-135M with
fewer layers and random weights, in milliseconds per token. Only the last quarter of each row has
labels, as a response has. The step is taken twice: with the loss as a training computes it
(``lorada``), and with the model's own loss, which makes all logits (``plain``). Both losses must
agree before a point is timed. Writes benchmarks/results/training_growth.json, pictures, and
docs/performance.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from library.agreement import check_tensor
from library.measuring import Request, Results, measure_rows, read_request, run_script
from library.timing import Action, median_ms, time_in_turns
from library.training_growth_page import PAGE, PICTURES, write_page
from library.training_setup import benchmark_plan
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorada.data.batches import IGNORED
from lorada.training.models.labelled_loss import find_labelled_loss

RESULTS = Path(__file__).parent / "results" / "training_growth.json"
LABELLED = 4  # one token in so many has a label
VOCABULARY = 49152  # of SmolLM2-135M


@dataclass(frozen=True)
class Settings:
    """What decides the figures; rows and lengths are divided by ``factor``."""

    layers: int = 6
    repetitions: int = 5
    threads: int = 2
    factor: int = 1


@dataclass(frozen=True)
class Curve:
    """Points of a curve: (rows, tokens of a row, vocabulary), and which of these grows."""

    axis: str
    points: list[tuple[int, int, int]]


CURVES = {
    "rows": Curve("rows", [(2**i, 128, VOCABULARY) for i in range(6)]),
    "length": Curve("length", [(1, 128 * 2**i, VOCABULARY) for i in range(5)]),
    "vocabulary": Curve(
        "vocabulary", [(4, 128, size) for size in (8192, 32000, VOCABULARY, 128256)]
    ),
}


def build_model(layers: int, vocabulary: int) -> nn.Module:
    """SmolLM2's width with LoRA, which trains."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=vocabulary, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    plan = benchmark_plan("lora", config)
    assert plan.config is not None
    return get_peft_model(LlamaForCausalLM(config), plan.config).train()


def batch_of(rows: int, length: int, vocabulary: int) -> dict[str, Tensor]:
    """Random tokens, of which the last quarter of each row has labels."""
    ids = torch.randint(vocabulary, (rows, length))
    labels = ids.clone()
    labels[:, : length - length // LABELLED] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def steps(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Action]:
    """Forward and backward with both losses; each returns its loss."""
    labelled = find_labelled_loss(model, batch)
    if labelled is None:
        raise ValueError("this model computes its loss itself, so there is nothing to compare")
    found = labelled

    def step_of(loss_of: Callable[[], Tensor]) -> Action:
        def step(turn: int) -> Tensor:
            loss = loss_of()
            loss.backward()
            model.zero_grad()
            return loss.detach()

        return step

    return {
        "lorada": step_of(lambda: found(model, batch)[0].mean()),
        "plain": step_of(lambda: model(**batch).loss),
    }


def measure_point(settings: Settings, rows: int, length: int, vocabulary: int) -> dict[str, Any]:
    """Milliseconds per token with both losses."""
    model, batch = build_model(settings.layers, vocabulary), batch_of(rows, length, vocabulary)
    actions = steps(model, batch)
    model.eval()  # dropout would make the losses differ
    check_tensor("the loss", actions["lorada"](0), actions["plain"](0))
    model.train()
    seconds, _ = time_in_turns(actions, settings.repetitions)
    tokens = rows * length
    return {
        "rows": rows, "length": length, "vocabulary": vocabulary,
        **{f"{name}_ms": round(median_ms(taken, 6) / tokens, 4) for name, taken in seconds.items()},
        "single": [round(a / b, 3) for a, b in zip(*seconds.values(), strict=True)],
    }  # fmt: skip


def run(request: Request) -> Results:
    """Measure the curves of a request; ``measure_rows`` says what it raises.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib.pyplot  # noqa: F401  # so that it fails now, not after the first curve

    settings = request.settings

    def smaller(number: int) -> int:
        return max(1, number // settings.factor)

    def measure(name: str) -> dict[str, Any]:
        points = [
            measure_point(settings, smaller(rows), max(8, smaller(length)), vocabulary)
            for rows, length, vocabulary in CURVES[name].points
        ]
        print(name, *points, sep="\n")
        return {"points": points}

    def show(name: str, results: Results) -> None:
        draw(name, results["rows"][name]["points"], request.page.parent)
        write_page(results, request.page)

    return measure_rows(request, CURVES, measure, show)


def draw(name: str, points: list[dict[str, Any]], folder: Path) -> None:
    """Draw milliseconds per token with both losses."""
    import matplotlib.pyplot as plt

    axis = CURVES[name].axis
    x = [point[axis] for point in points]
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.semilogx(x, [point["lorada_ms"] for point in points], "o-", label="lorada")
    axes.semilogx(x, [point["plain_ms"] for point in points], "s--", label="the model's own loss")
    axes.set(xlabel=axis, ylabel="milliseconds per token")
    axes.set_ylim(bottom=0)
    axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / PICTURES[name], dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(run, read_request(__doc__, CURVES, Settings, RESULTS, PAGE))
