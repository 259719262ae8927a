"""Measure what the map costs, beside the same model without it and beside the paper's own form.

    python benchmarks/measure_map_costs.py                      # the rows that are missing
    python benchmarks/measure_map_costs.py --rows step_1x2048   # this row again
    python benchmarks/measure_map_costs.py --factor 32 --output DIR   # a quick look

Before a model with a map is timed, short batches must give the loss and gradients of the paper's
form, and decoding its logits (``library/map_checks.py``). Then all models take turns. A ratio is
that of the medians, with the lowest and highest of a single turn. A second model without a map
beside the first shows how large noise alone is.
Writes benchmarks/results/performance.json after each row, and docs/performance.md from it. Results
of other settings, packages or machines are kept unless ``--overwrite`` says to start again.
``measure_map_growth.py`` adds curves over the tokens, the map's length and the batch.
"""

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from library import fresh_process, paper_attention
from library.llama_layer import term_operations
from library.map_checks import check_decoding, check_training, paper_setup
from library.map_costs_page import PAGE, show, write_page
from library.measuring import Request, Results, measure_rows, read_request, run_script
from library.reference_setup import parts_of, peft_setup
from library.timing import Action, Seconds, median_ms, ratio, time_in_turns
from library.training_setup import (
    DATA,
    MODEL,
    Batch,
    TrainingSetup,
    add_noise,
    bare_model,
    copy_parameters,
    lorada_setup,
    run_step,
    text_batch,
)
from peft import LoraConfig

RESULTS = Path(__file__).parent / "results" / "performance.json"
METHOD = "lora+lmam"
PEAK_PROCESSES = 7  # of each form
MORE_TURNS = 3  # times the turns of other rows, where those could not tell the map from noise

Measure = Callable[["Settings"], dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """What decides the figures."""

    model: str = MODEL
    data: str = DATA
    repetitions: int = 9  # a multiple of three, so that each of three models begins as often
    threads: int = 2
    factor: int = 1  # all sizes are divided by it, for a quick look


def make_batch(settings: Settings, rows: int, length: int, *, padded: bool = False) -> Batch:
    """Rows of text, of ``length`` tokens divided by the factor."""
    size = max(8, length // settings.factor)
    return text_batch(settings.model, settings.data, rows, size, padded=padded)


def setup_with_map(settings: Settings, batch: Batch, method: str = METHOD) -> TrainingSetup:
    """A method with a map that is not zero."""
    setup = lorada_setup(method, bare_model(settings.model), batch)
    add_noise(setup)
    return setup


def setups_with_and_without(settings: Settings, batch: Batch) -> dict[str, TrainingSetup]:
    """LoRA with a map (``on``), and two models with the same LoRA alone."""
    on = setup_with_map(settings, batch)

    def lora() -> TrainingSetup:
        return copy_parameters(lorada_setup("lora", bare_model(settings.model), batch), on)

    return {"on": on, "off": lora(), "off_again": lora()}


def time_setups(
    setups: dict[str, TrainingSetup], action_of: Callable[[TrainingSetup], Action], repetitions: int
) -> dict[str, Any]:
    """Time setups in turns."""
    actions = {name: action_of(setup) for name, setup in setups.items()}
    return comparison(time_in_turns(actions, repetitions)[0])


def comparison(seconds: Seconds) -> dict[str, Any]:
    """A row: ``on`` beside ``off``, and whatever else was timed beside ``off``."""
    medians = {f"{name}_ms": median_ms(column, 2) for name, column in seconds.items()}
    found: dict[str, Any] = {**ratio(seconds, "on", "off"), **medians, "turns": len(seconds["on"])}
    if "off_again" in seconds:
        found["noise"] = ratio(seconds, "off_again", "off")
    if "bare" in seconds:
        found["bare"] = ratio(seconds, "bare", "off")
    return found


def step_on(batch: Batch) -> Callable[[TrainingSetup], Action]:
    """A turn is a training step on this batch."""
    return lambda setup: partial(run_step, setup, batch)


# The rows.


def forward(settings: Settings) -> dict[str, Any]:
    """A forward pass of 4 × 512 tokens."""
    inputs = {"input_ids": make_batch(settings, 4, 512)["input_ids"]}
    setups = setups_with_and_without(settings, inputs)
    check_training(settings, METHOD, setups["on"], inputs)

    def action_of(setup: TrainingSetup) -> Action:
        setup.model.eval()
        return torch.no_grad()(lambda turn: setup.model(**inputs))

    return time_setups(setups, action_of, MORE_TURNS * settings.repetitions)


def training_step(rows: int, length: int, *, padded: bool = False, times: int = 1) -> Measure:
    """A training step of ``rows`` × ``length`` tokens, in ``times`` the turns of other rows."""

    def measure(settings: Settings) -> dict[str, Any]:
        batch = make_batch(settings, rows, length, padded=padded)
        setups = setups_with_and_without(settings, batch)
        check_training(settings, METHOD, setups["on"], batch)
        return time_setups(setups, step_on(batch), times * settings.repetitions)

    return measure


def step_beside_paper(settings: Settings) -> dict[str, Any]:
    """A training step of 1 × 2048 tokens: ours (``on``), the paper's form (``off``), no map."""
    batch = make_batch(settings, 1, 2048)
    ours = setup_with_map(settings, batch)
    paper = paper_setup(settings.model, METHOD, ours, batch)
    check_training(settings, METHOD, ours, batch, paper)
    bare = lorada_setup("lora", bare_model(settings.model), batch)
    setups = {"on": ours, "off": paper, "bare": bare}
    return time_setups(setups, step_on(batch), settings.repetitions)


def decoding(rows: int, length: int, *, padded: bool = False, times: int = 1) -> Measure:
    """Decoding 64 tokens after ``rows`` prompts of ``length`` tokens, in ``times`` the turns."""

    def measure(settings: Settings) -> dict[str, Any]:
        batch = make_batch(settings, rows, length, padded=padded)
        setups = setups_with_and_without(settings, batch)
        check_decoding(settings, METHOD, setups["on"])
        new = max(4, 64 // settings.factor)
        mask, order = batch["attention_mask"].sort(dim=-1, stable=True)  # pads come first
        inputs = {"input_ids": batch["input_ids"].gather(1, order), "attention_mask": mask}

        def action_of(setup: TrainingSetup) -> Action:
            model: Any = setup.model.eval()
            model.config.use_cache = True
            return lambda turn: model.generate(
                **inputs, min_new_tokens=new, max_new_tokens=new, do_sample=False, use_cache=True
            )

        return time_setups(setups, action_of, times * settings.repetitions)

    return measure


def lorada_la(settings: Settings) -> dict[str, Any]:
    """A step of LoRaDA-LA, 8 × 128 tokens, beside PEFT's LoRA with the settings of its LoRA."""
    batch = make_batch(settings, 8, 128)
    ours = setup_with_map(settings, batch, "lorada_la")
    assert ours.plan is not None
    part = next(part for part in parts_of(ours.plan) if isinstance(part, LoraConfig))

    def lora() -> TrainingSetup:
        return peft_setup(ours, bare_model(settings.model), part)

    setups = {"on": ours, "off": lora(), "off_again": lora()}
    check_training(settings, "lorada_la", ours, batch)
    return time_setups(setups, step_on(batch), settings.repetitions)


def peak_memory(settings: Settings) -> dict[str, Any]:
    """The memory that a step of 1 × 2048 tokens needs, in processes that take turns."""
    batch = make_batch(settings, 1, 2048)
    check_training(settings, METHOD, setup_with_map(settings, batch), batch)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "papers": []}
    for _ in range(PEAK_PROCESSES):
        for form, measured in found.items():
            measured.append(fresh_process.call(peak_of_step, vars(settings), form))
    beyond = {form: [one["beyond"] for one in measured] for form, measured in found.items()}
    row: dict[str, Any] = dict(ratio(beyond, "ours", "papers"))
    for form, measured in found.items():
        row[f"{form}_mb"] = round(statistics.median(beyond[form]))
        row[f"{form}_total_mb"] = round(statistics.median(one["total"] for one in measured))
    return row


def peak_of_step(about: dict[str, Any], form: str) -> dict[str, float]:
    """Megabytes of this process at the peak of a step: beyond those before it, and in all.

    Args:
        about: the fields of the settings.
        form: ``ours`` or ``papers``, the form of attention.
    """
    settings = Settings(**about)
    torch.set_num_threads(settings.threads)
    batch = make_batch(settings, 1, 2048)
    base = bare_model(settings.model)
    if form == "papers":
        base = paper_attention.use_paper_attention(base)
    setup = lorada_setup(METHOD, base, batch)
    run_step(setup, {key: x[:, :8] for key, x in batch.items()}, 1)
    gc.collect()
    before = fresh_process.memory_mb("VmRSS")
    fresh_process.reset_peak()  # loading the model had a peak too
    run_step(setup, batch, 2)
    total = fresh_process.memory_mb("VmHWM")
    return {"beyond": total - before, "total": total}


ROWS: dict[str, Measure] = {
    "forward_4x512": forward,
    "step_8x128": training_step(8, 128, times=MORE_TURNS),
    "padded_8x128": training_step(8, 128, padded=True, times=MORE_TURNS),
    "step_1x2048": training_step(1, 2048),
    "paper_1x2048": step_beside_paper,
    "decode_64": decoding(1, 256, times=MORE_TURNS),
    "decode_padded": decoding(16, 128, padded=True),
    "peak_1x2048": peak_memory,
    "operations": lambda settings: term_operations(),
    "lorada_la": lorada_la,
    "start": lambda settings: fresh_process.start_times(settings.repetitions),
}


def run(request: Request) -> Results:
    """Measure the rows of a request; ``measure_rows`` says what it raises."""
    return measure_rows(
        request,
        ROWS,
        lambda name: ROWS[name](request.settings),
        lambda name, results: write_page(results, request.page),
    )


def main() -> None:
    show(run_script(run, read_request(__doc__, ROWS, Settings, RESULTS, PAGE)))


if __name__ == "__main__":
    main()
