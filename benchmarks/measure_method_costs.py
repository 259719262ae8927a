"""Measure what a training step of each method costs, beside the same method without lorada.

    python benchmarks/measure_method_costs.py                   # the rows that are missing
    python benchmarks/measure_method_costs.py --rows lmam,ist   # these rows again

Every method of METHODS that the paper has on LLaMA is a row. Its reference is the same method
without lorada (``library/reference_setup.py``): first both take a step on the same batch with the
same parameters, and unless loss, gradients and update agree, nothing is timed. Then both take steps
in turns. A method that has no reference is timed alone.
Writes benchmarks/results/costs.json after each row, and docs/methods.md from it.
"""

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from library.agreement import check_step
from library.measuring import Request, Results, measure_rows, read_request, run_script
from library.method_costs_page import SCRIPT, page, show
from library.page import write_marked
from library.reference_setup import (
    describe_reference,
    needs_training_mode,
    parts_of,
    peft_setup,
    reference_setup,
)
from library.timing import Action, median_ms, ratio, time_in_turns
from library.training_setup import (
    DATA,
    MODEL,
    Batch,
    TrainingSetup,
    add_noise,
    bare_model,
    benchmark_plan,
    by_layer,
    copy_parameters,
    lorada_setup,
    run_step,
    text_batch,
)
from peft import LoraConfig
from transformers import LlamaConfig, PreTrainedModel

from lorada import METHODS
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.lookup import method_named
from lorada.methods.provenance import NOT_FROM_THE_PAPER

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "costs.json", HERE.parent / "docs" / "methods.md"
CHECKED_STEP = 5  # the step that is checked; the steps after it are timed
SCORED_ROWS = 16  # rows on which IST compares sets of layers


@dataclass(frozen=True)
class Settings:
    """What decides the figures."""

    model: str = MODEL
    data: str = DATA
    batch: int = 8
    length: int = 64
    repetitions: int = 7
    threads: int = 2


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        method: a method, or ``NAME+lmam``.
        padded: whether the rows of the batch have different lengths.
        beside: ``reference``; ``itself``, a second copy made by lorada; or ``without_map``, its
            LoRA placed by PEFT.
    """

    method: str
    padded: bool = False
    beside: str = "reference"


# Rows that follow that of a method.
FURTHER_ROWS = {
    "lora": {"lora+lmam": Row("lora+lmam", beside="without_map")},
    "lmam": {"lmam_padded": Row("lmam", padded=True)},
    "lorada_la": {"lorada_la_padded": Row("lorada_la", padded=True)},
}


@cache
def rows() -> dict[str, Row]:
    """All rows, by name."""
    found = {"noise": Row("lora", beside="itself")}
    for name in filter(is_measured, METHODS):
        found |= {name: Row(name), **FURTHER_ROWS.get(name, {})}
    return found


def is_measured(name: str) -> bool:
    """Whether a method is a row: the paper has it on LLaMA, or it has a reference there."""
    try:
        plan = benchmark_plan(name, LlamaConfig())
    except ValueError:
        return False  # LLaMA has no form of it, as of BitFit
    method = method_named(name)
    of_paper = "llama" in method.parts and NOT_FROM_THE_PAPER not in method.source_of("llama")
    return bool(method.trainable or of_paper or describe_reference(plan))


def both_setups(
    row: Row, base: PreTrainedModel, batch: Batch
) -> tuple[TrainingSetup, TrainingSetup | None]:
    """Make lorada's setup of a row, and what it is compared to, with the same parameters."""
    second = copy.deepcopy(base)
    torch.manual_seed(0)
    ours = lorada_setup(row.method, base, batch)
    assert ours.plan is not None
    parts = parts_of(ours.plan)
    if parts and row.beside != "without_map":
        add_noise(ours)  # a new map is zero, so without noise a missing map would not be seen
    torch.manual_seed(0)
    if row.beside == "itself":
        return ours, copy_parameters(lorada_setup(row.method, second, batch), ours)
    if row.beside == "without_map":
        return ours, peft_setup(ours, second, next(p for p in parts if isinstance(p, LoraConfig)))
    if describe_reference(ours.plan) is None:
        return ours, None
    return ours, reference_setup(ours, second, batch)


def check(row: Row, ours: TrainingSetup, reference: TrainingSetup, batch: Batch) -> None:
    """Take a step of both setups, which warms up as well, and check that it is the same.

    Raises:
        DisagreementError: naming the first difference.
    """
    assert ours.plan is not None
    check_step(
        ours, reference, batch, CHECKED_STEP,
        training_mode=needs_training_mode(ours.plan),
        same_parameters=row.beside != "without_map",
    )  # fmt: skip


def words_for(row: Row, ours: TrainingSetup) -> str:
    """What a row is compared to, in words."""
    assert ours.plan is not None
    if row.beside == "reference":
        return describe_reference(ours.plan) or ""
    return {"itself": "a second copy", "without_map": "PEFT's LoraConfig, no map"}[row.beside]


def measure(row: Row, base: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    """Measure a row: milliseconds of both setups and their ratio.

    Raises:
        DisagreementError: if the two setups do not compute the same.
    """
    batch = text_batch(
        settings.model, settings.data, settings.batch, settings.length, padded=row.padded
    )
    ours, reference = both_setups(row, base, batch)
    actions = {"ours": next_step(ours, batch)}
    if reference is None:
        seconds, _ = time_in_turns(actions, settings.repetitions)
        return {"ours_ms": median_ms(seconds["ours"])}
    check(row, ours, reference, batch)
    actions["other"] = next_step(reference, batch)
    seconds, processor = time_in_turns(actions, settings.repetitions)
    found: dict[str, Any] = {
        "against": words_for(row, ours),
        "ours_ms": median_ms(seconds["ours"]),
        "other_ms": median_ms(seconds["other"]),
        **{name: round(value, 3) for name, value in ratio(seconds, "ours", "other").items()},
        "processor_ratio": round(ratio(processor, "ours", "other")["ratio"], 3),
    }
    for callback in ours.plan.callbacks if ours.plan else ():
        if isinstance(callback, ISTCallback):
            found["scoring"] = scoring_cost(ours, reference, callback, settings)
    return found


def next_step(setup: TrainingSetup, batch: Batch) -> Action:
    """A turn is a training step; the first comes after the one that is checked."""
    return lambda turn: run_step(setup, batch, CHECKED_STEP + 1 + turn)


def scoring_cost(
    ours: TrainingSetup, lora: TrainingSetup, callback: ISTCallback, settings: Settings
) -> dict[str, float]:
    """Measure IST's scores: forward passes on 16 rows, every ten steps of as many rows.

    Args:
        ours: IST by lorada.
        lora: its reference, which is LoRA once all layers have gradients.
        callback: IST's.
        settings: of the benchmark.
    """
    batch = text_batch(settings.model, settings.data, SCORED_ROWS, settings.length)
    for parameter in (p for layer in by_layer(lora.parameters) for p in layer):
        parameter.requires_grad_(True)
    plain = TrainingSetup(lora.model, lora.parameters, lora.update)
    generator = torch.Generator().manual_seed(0)
    actions: dict[str, Action] = {
        "ist": next_step(ours, batch),
        "lora": next_step(plain, batch),
        "scores": lambda turn: callback.update_scores(ours.model, batch, generator),
    }
    seconds, _ = time_in_turns(actions, max(2, settings.repetitions // 3))
    ist, lora_step, scores = (median_ms(column, 6) for column in seconds.values())
    every = ISTCallback().every
    return {
        "ist_ms": round(ist, 1),
        "lora_ms": round(lora_step, 1),
        "scores_ms": round(scores, 1),
        "of_ist_percent": round(100 * scores / every / ist, 1),
        "of_lora_percent": round(100 * scores / every / lora_step, 1),
    }


def run(request: Request) -> Results:
    """Measure the rows of a request; ``measure_rows`` says what it raises."""
    settings = request.settings

    def measure_row(name: str) -> dict[str, Any]:
        return measure(rows()[name], bare_model(settings.model), settings)

    def write_page(name: str, results: Results) -> None:
        write_marked(request.page, SCRIPT, page(results, rows()))

    return measure_rows(request, rows(), measure_row, write_page)


def main() -> None:
    show(run_script(run, read_request(__doc__, rows(), Settings, RESULTS, PAGE)), rows())


if __name__ == "__main__":
    main()
