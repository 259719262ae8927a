"""What does a training step of each method cost, beside the same method written directly?

    python benchmarks/costs.py                     # what is missing of the table (docs/costs.md)
    python benchmarks/costs.py --methods lmam,ist  # these rows again

The other side is PEFT's own class where PEFT has the method, else the form in ``direct.py``. First
both do a step on the same batch with the same parameters: unless loss, gradients and update agree,
nothing is timed. Then both models take steps in turn: forward, backward, update.
Writes benchmarks/results/costs.json after every row, and docs/costs.md from it.
"""

import argparse
import copy
import gc
import json
import logging
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from costs_page import page, show
from pairs import PAIRS, Pair
from sides import Batch, Side, bare_base, finish, forward_backward, layers_among, ours, randomise
from torch import Tensor
from transformers import PreTrainedModel

from lorada.methods.callbacks.ist import ISTCallback
from lorada.runs.folder.result import hardware, versions
from lorada.runs.models.loading import load_tokenizer
from lorada.support.files import write_whole
from lorada.tasks.rows import form_of, read_rows
from lorada.tasks.tokenize import EncodeOptions, encode

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "costs.json", HERE.parent / "docs" / "costs.md"
TOLERANCE = 1e-4  # of losses and gradients: relative, fp32
UPDATE_TOLERANCE = 0.01  # a float near 1 holds an update of 3e-4 to 2e-4 of its size
FIRST = 5  # the step that is checked; those behind it are timed
SCORED = 16  # rows that IST compares sets of layers on


class DisagreementError(ValueError):
    """The two sides of a row do not compute the same."""


@dataclass(frozen=True)
class Options:
    """What decides the figures."""

    model: str = "smollm2-135m"
    data: str = "builtin:syllogisms_train.jsonl"
    batch: int = 8
    length: int = 64
    repetitions: int = 7
    threads: int = 2


def text_batch(options: Options, rows: int, *, padded: bool = False) -> Batch:
    """Rows of text, each joined with the next ones until it is ``length`` tokens long.

    With ``padded`` row i of b ends i/2b of the length earlier and is padded on the right.
    """
    tokenizer = load_tokenizer(options.model)
    data = read_rows(options.data)
    form = form_of(data, options.data)
    size, every = options.length, EncodeOptions(10**6, loss_on="all")
    ids = [
        token
        for encoded in encode(data, form, tokenizer, every)
        if encoded is not None
        for token in encoded.features["input_ids"]
    ]
    if len(ids) < rows * size:
        raise ValueError(
            f"{options.data} has {len(ids)} tokens, and {rows} rows of {size} need {rows * size}: "
            "lower --batch or --length"
        )
    input_ids = torch.tensor(ids[: rows * size]).view(rows, size)
    mask = torch.ones_like(input_ids)
    if padded:
        for i in range(rows):
            mask[i, size - i * size // (2 * rows) :] = 0
        input_ids = torch.where(mask == 1, input_ids, tokenizer.pad_token_id)
    labels = torch.where(mask == 1, input_ids, -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


# Equality first.


def both(pair: Pair, base: PreTrainedModel, batch: Batch) -> tuple[Side, Side]:
    """The two sides of a row, with the same parameters."""
    second = copy.deepcopy(base)
    torch.manual_seed(0)
    mine = ours(pair.method, base, batch)
    if not pair.starts:
        randomise(mine)
    torch.manual_seed(0)
    return mine, pair.other(mine, second, batch)


def check(pair: Pair, mine: Side, other: Side, batch: Batch) -> None:
    """A step of both sides, which is a warm-up as well: loss, gradients and update are the same.

    Raises:
        DisagreementError: naming the first difference.
    """
    sides = (mine, other)
    for side in sides:
        side.model.train(pair.trains)  # no dropout, which draws in another order
    losses = [forward_backward(side, batch, FIRST) for side in sides]
    if not (losses[0] - losses[1]).abs() <= TOLERANCE * losses[1].abs():
        raise DisagreementError(f"the loss is {losses[0]:.7g}, not {losses[1]:.7g}")
    gradients = mine.found(), other.found()
    _compare(*gradients, same=pair.same)
    # A side that holds its parameters in another form has no names in common with ours.
    names = [name for name in other.parameters if name in mine.parameters]
    before = {name: other.parameters[name].detach().clone() for name in names}
    for name in names:
        if not torch.equal(mine.parameters[name], before[name]):
            raise DisagreementError(f"{name} does not start at the same values")
    clear = {name: _clear(gradients[0][name], gradients[1][name]) for name in names}
    for side in sides:
        finish(side, FIRST)
    for name in names:
        found, wanted = (
            (side.parameters[name].detach() - before[name]) * clear[name] for side in sides
        )
        error, size = float((found - wanted).norm()), float(wanted.norm())
        if not error <= UPDATE_TOLERANCE * size:
            raise DisagreementError(f"the update of {name} is {error:.2g} of {size:.2g} off")
    for side in sides:
        side.model.train()


def _clear(mine: Tensor | None, other: Tensor | None) -> Tensor | bool:
    """Where gradients are no rounding noise, of which AdamW's first step would be the sign."""
    if mine is None or other is None:
        return True
    return (other.abs() > 10 * TOLERANCE * other.square().mean().sqrt()) | (mine == other)


def _compare(
    mine: dict[str, Tensor | None], other: dict[str, Tensor | None], *, same: bool
) -> None:
    if same and mine.keys() != other.keys():
        raise DisagreementError(f"only one side trains {min(mine.keys() ^ other.keys())}")
    # The norm of a gradient that is nothing but rounding.
    floor = 1e-6 * max(float(g.norm()) for g in other.values() if g is not None)
    for name, wanted in other.items():
        found = mine[name]
        if found is None and wanted is None:
            continue
        if found is None or wanted is None:
            raise DisagreementError(f"only one side has a gradient of {name}")
        error, size = float((found - wanted).norm()), float(wanted.norm())
        if not error <= TOLERANCE * size + floor:
            raise DisagreementError(f"the gradient of {name} is {error:.2g} of {size:.2g} off")


# Then time.


def timed(side: Side, batch: Batch, t: int) -> tuple[float, float]:
    """Seconds of step t, and the processor time of all threads together."""
    started = time.perf_counter(), time.process_time()
    forward_backward(side, batch, t)
    finish(side, t)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def in_turn(mine: Side, other: Side, batch: Batch, repetitions: int) -> list[list[float]]:
    """Steps of both sides, each of which goes first every other time.

    Returns:
        Columns: seconds of ours, of the other; processor seconds of ours, of the other.
    """
    rows = []
    for t in range(FIRST + 1, FIRST + 1 + repetitions):
        if t % 2:
            first = timed(mine, batch, t)
            second = timed(other, batch, t)
        else:
            second = timed(other, batch, t)
            first = timed(mine, batch, t)
        rows.append([first[0], second[0], first[1], second[1]])
    return [list(column) for column in zip(*rows, strict=True)]


def measure(name: str, base: PreTrainedModel, options: Options) -> dict[str, Any]:
    """One row of the table: milliseconds of both sides, and their ratio."""
    pair = PAIRS[name]
    batch = text_batch(options, options.batch, padded=pair.padded)
    mine, other = both(pair, base, batch)
    check(pair, mine, other, batch)
    gc.collect()
    gc.disable()
    columns = in_turn(mine, other, batch, options.repetitions)
    gc.enable()
    medians = [statistics.median(column) for column in columns]
    ratios = [a / b for a, b in zip(*columns[:2], strict=True)]
    row: dict[str, Any] = {
        "against": pair.against,
        "ours_ms": round(1000 * medians[0], 1),
        "other_ms": round(1000 * medians[1], 1),
        "ratio": round(medians[0] / medians[1], 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "processor_ratio": round(medians[2] / medians[3], 3),
    }
    for callback in mine.callbacks:
        if isinstance(callback, ISTCallback):
            row["scoring"] = scoring(mine, other, callback, options)
    return row


def scoring(mine: Side, lora: Side, callback: ISTCallback, options: Options) -> dict[str, float]:
    """What IST's scores cost: their forwards on 16 rows, every ten steps of as many rows.

    ``lora`` is the other side of IST's row, which is LoRA once all layers have gradients.
    """
    batch = text_batch(options, SCORED)
    layers = layers_among(lora.parameters)
    for parameter in (p for layer in layers for p in layer):
        parameter.requires_grad_(True)
    plain = Side(lora.model, lora.parameters, lora.update)
    columns: dict[str, list[float]] = {"ist": [], "lora": [], "scores": []}
    generator = torch.Generator().manual_seed(0)
    for t in range(FIRST + 1, FIRST + 1 + max(2, options.repetitions // 3)):
        columns["ist"].append(timed(mine, batch, t)[0])
        columns["lora"].append(timed(plain, batch, t)[0])
        started = time.perf_counter()
        callback.update_scores(mine.model, batch, generator)
        columns["scores"].append(time.perf_counter() - started)
    ist, lora_step, scores = (1000 * statistics.median(column) for column in columns.values())
    every = ISTCallback().every
    return {
        "ist_ms": round(ist, 1),
        "lora_ms": round(lora_step, 1),
        "scores_ms": round(scores, 1),
        "of_ist_percent": round(100 * scores / every / ist, 1),
        "of_lora_percent": round(100 * scores / every / lora_step, 1),
    }


# The rows.


def load(options: Options, file: Path) -> dict[str, Any]:
    """The rows of a file that were measured under these options on this machine."""
    settings = {**vars(options), "hardware": hardware(), "versions": versions()}
    if file.is_file():
        saved: dict[str, Any] = json.loads(file.read_text())
        if saved["settings"] == settings:
            return saved
        print(f"{file} was measured under other settings: starting anew", file=sys.stderr)
    return {"settings": settings, "rows": {}}


def run(
    options: Options, methods: list[str], file: Path = RESULTS, page_file: Path = PAGE
) -> dict[str, Any]:
    """Measure the rows that are named, or those that are missing, and keep each as it comes.

    Raises:
        DisagreementError: if the two sides of a row do not compute the same.
    """
    torch.set_num_threads(options.threads)
    results = load(options, file)
    wanted = methods or [name for name in PAIRS if name not in results["rows"]]
    for number, name in enumerate(wanted, 1):
        started = time.monotonic()
        base = bare_base(options.model)
        try:
            row = results["rows"][name] = measure(name, base, options)
        except DisagreementError as error:
            raise DisagreementError(f"{name} was not timed: {error}") from error
        del base
        gc.collect()
        write_whole(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_whole(page_file, page(results))
        seconds = time.monotonic() - started
        print(
            f"[{number}/{len(wanted)}] {name}: {row['ratio']:.3f} ({seconds:.0f} s)",
            file=sys.stderr,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="", help=f"rows to measure: {', '.join(PAIRS)}")
    parser.add_argument("--output", type=Path, help="folder for costs.json and costs.md")
    for option in fields(Options):
        kind = type(option.default)
        parser.add_argument(f"--{option.name}", type=kind, default=option.default)
    given = vars(parser.parse_args())
    methods = [name for name in given.pop("methods").split(",") if name]
    output = given.pop("output")
    if unknown := [name for name in methods if name not in PAIRS]:
        parser.error(f"--methods {unknown[0]}: no such row; there are {', '.join(PAIRS)}")
    for name, value in given.items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    files = (output / RESULTS.name, output / PAGE.name) if output else (RESULTS, PAGE)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        show(run(Options(**given), methods, *files))
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
