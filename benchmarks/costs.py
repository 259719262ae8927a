"""What does a training step of each method cost, beside the same method written directly?

    python benchmarks/costs.py                     # what is missing of the table (docs/costs.md)
    python benchmarks/costs.py --methods lmam,ist  # these again

The other side is PEFT's own class where PEFT has the method, else the form in ``direct.py``. First
both do two steps on the same batch with the same parameters: unless losses and gradients agree,
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pairs import PAIRS, Batch, Pair, Side, finish, forward_backward, layers_among, ours, randomise
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from lorada.files import write_whole
from lorada.procedures.ist import ISTCallback
from lorada.run.models import load_model, load_tokenizer
from lorada.run.result import hardware, versions
from lorada.tasks.jsonl import EncodeOptions, encode
from lorada.tasks.rows import form_of, read_rows

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "costs.json", HERE.parent / "docs" / "costs.md"
TOLERANCE = 1e-4  # relative, fp32
LIMIT = 1.15
SCORED = 16  # rows that IST compares sets of layers on
CHECKED, WARM = 2, 1  # steps of each side before those that count


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
        for row in data
        if (encoded := encode(row, form, tokenizer, every)) is not None
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
    """Two steps of both sides: their losses, and the gradients of the first, are the same.

    The second loss is that of the parameters after the first update, so that this covers what a
    procedure does to gradients and update.

    Raises:
        DisagreementError: naming the first difference.
    """
    for t in range(CHECKED):
        losses = []
        for side in (mine, other):
            side.model.train(pair.trains)  # no dropout, which draws in another order
            losses.append(float(forward_backward(side, batch, t)))
        if abs(losses[0] - losses[1]) > TOLERANCE * abs(losses[1]):
            raise DisagreementError(f"the loss of step {t} is {losses[0]:.7g}, not {losses[1]:.7g}")
        if t == 0:
            _compare(mine.found(), other.found(), same=pair.same)
        for side in (mine, other):
            finish(side, t)


def _compare(mine: dict[str, Any], other: dict[str, Any], *, same: bool) -> None:
    if same and mine.keys() != other.keys():
        raise DisagreementError(f"only one side trains {min(mine.keys() ^ other.keys())}")
    floor = 1e-6 * max(float(g.norm()) for g in other.values() if g is not None)
    for name, wanted in other.items():
        found: Tensor | None = mine[name]
        if (found is None) != (wanted is None):
            raise DisagreementError(f"only one side has a gradient of {name}")
        if found is None or wanted is None:
            continue
        error, size = float((found - wanted).norm()), float(wanted.norm())
        if error > TOLERANCE * size + floor:
            raise DisagreementError(f"the gradient of {name} is {error / size:.2g} of its size off")


# Then time.


def timed(side: Side, batch: Batch, t: int) -> float:
    """Seconds of step t."""
    started = time.perf_counter()
    forward_backward(side, batch, t)
    finish(side, t)
    return time.perf_counter() - started


def measure(name: str, base: PreTrainedModel, options: Options) -> dict[str, Any]:
    """One row of the table: milliseconds of both sides, and their ratio."""
    pair = PAIRS[name]
    batch = text_batch(options, options.batch, padded=pair.padded)
    mine, other = both(pair, base, batch)
    check(pair, mine, other, batch)
    for side in (mine, other):
        side.model.train()
    gc.collect()
    gc.disable()
    seconds: list[tuple[float, float]] = []
    for t in range(CHECKED, CHECKED + WARM + options.repetitions):
        # In turn, and each of them first every other time.
        if t % 2:
            first = timed(mine, batch, t)
            seconds.append((first, timed(other, batch, t)))
        else:
            first = timed(other, batch, t)
            seconds.append((timed(mine, batch, t), first))
    gc.enable()
    seconds = seconds[WARM:]
    ratios = [a / b for a, b in seconds]
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    row: dict[str, Any] = {
        "against": pair.against,
        "ours_ms": round(1000 * medians[0], 1),
        "other_ms": round(1000 * medians[1], 1),
        "ratio": round(medians[0] / medians[1], 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
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
    for t in range(3, 3 + max(2, options.repetitions // 2)):
        columns["ist"].append(timed(mine, batch, t))
        columns["lora"].append(timed(plain, batch, t))
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


# The page.


def load(options: Options) -> dict[str, Any]:
    """The rows that were measured under these options on this machine."""
    settings = {**vars(options), "hardware": hardware(), "versions": versions()}
    if RESULTS.is_file():
        saved: dict[str, Any] = json.loads(RESULTS.read_text())
        if saved["settings"] == settings:
            return saved
    return {"settings": settings, "rows": {}}


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    spread = f"{row['lowest']:.2f}–{row['highest']:.2f}"
    return [name, row["against"], f"{row['ours_ms']:.0f}", f"{row['other_ms']:.0f}",
            f"{row['ratio']:.3f}", spread]  # fmt: skip


HEADER = ("method", "against", "ms", "ms of the other", "ratio", "pair by pair")


def page(results: dict[str, Any]) -> str:
    """docs/costs.md."""
    settings, rows = results["settings"], results["rows"]
    machine, packages = settings["hardware"], settings["versions"]
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(cells(name, rows[name])) + " |" for name in PAIRS if name in rows]
    above = [n for n in PAIRS if n in rows and PAIRS[n].same and rows[n]["ratio"] > LIMIT]
    verdict = (
        f"Above {LIMIT}: {', '.join(above)}."
        if above
        else f"No method is above {LIMIT} times its other side."
    )
    scores = next((row["scoring"] for row in rows.values() if "scoring" in row), None)
    return TEMPLATE.format(
        cpu=machine["cpu"], threads=settings["threads"], torch=packages["torch"],
        peft=packages["peft"], transformers=packages["transformers"], model=settings["model"],
        batch=settings["batch"], length=settings["length"], data=settings["data"],
        repetitions=settings["repetitions"], table="\n".join(lines), verdict=verdict,
        scoring="" if scores is None else SCORING.format(**scores),
    )  # fmt: skip


TEMPLATE = """# What a training step costs

A step of each method (forward, backward, the optimizer's update and what the method's procedure adds to it), beside
the same method without this package: PEFT's own class where PEFT has the method, else the equations written straight
into the `forward` of the model's modules ([benchmarks/direct.py](../benchmarks/direct.py)). This page is made by

```text
make bench                                        # what is missing of the table
python benchmarks/costs.py --methods lmam,ist     # these rows again
```

**Setting.** `{model}`, {batch} × {length} tokens of `{data}`, fp32, {cpu}, {threads} threads; torch {torch},
transformers {transformers}, peft {peft}. Before a row is timed, both sides do two steps with the same parameters on
the same batch; losses, and all gradients of the first step, must agree within 1e-4. Then both models take steps in
turn: {repetitions} of each after a warm-up. Given are the medians, their ratio, and the lowest and highest ratio of
two steps taken one after the other; `noise` is LoRA beside itself, so ratios that differ from 1 by no more than its
spread say nothing. In *padded* rows the samples of a batch have different lengths.

{table}

{verdict} `lora+lmam` is no such comparison: it says what a map on every layer costs on top of LoRA.
SoRA and AdaLoRA, which the paper has on encoders, are placed on all linears of the decoder here. Not in the table
are the methods that have no form on LLaMA: BitFit, Houlsby, Pfeiffer, PA(attn)+PA(ffn), Prefix+LoRA(ffn), MAM.
{scoring}"""

SCORING = """
**IST's scores.** Every ten steps IST compares three sets of layers by a forward each on 16 rows. At 16 rows a step
that takes {scores_ms:.0f} ms, against {ist_ms:.0f} ms for a step of IST (a quarter of the layers trains) and
{lora_ms:.0f} ms for one of LoRA: {of_ist_percent:.1f} % on top of IST's own steps, {of_lora_percent:.1f} % of LoRA's.
"""


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for name in PAIRS:
        if name in results["rows"]:
            table.add_row(*cells(name, results["rows"][name]))
    Console().print(table)
    for row in results["rows"].values():
        if "scoring" in row:
            print(SCORING.format(**row["scoring"]).strip())


def run(options: Options, methods: list[str]) -> dict[str, Any]:
    """Measure the rows that are named, or those that are missing, and keep each as it comes."""
    torch.set_num_threads(options.threads)
    results = load(options)
    wanted = methods or [name for name in PAIRS if name not in results["rows"]]
    for number, name in enumerate(wanted, 1):
        started = time.monotonic()
        base = load_model(options.model)
        base.config.use_cache = False  # as the Trainer has it
        row = results["rows"][name] = measure(name, base, options)
        del base
        gc.collect()
        write_whole(RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_whole(PAGE, page(results))
        seconds = time.monotonic() - started
        print(
            f"[{number}/{len(wanted)}] {name}: {row['ratio']:.3f} ({seconds:.0f} s)",
            file=sys.stderr,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="", help=f"rows, of {', '.join(PAIRS)}")
    for name, kind in Options.__annotations__.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(Options, name))
    given = vars(parser.parse_args())
    methods = [name for name in given.pop("methods").split(",") if name]
    if unknown := [name for name in methods if name not in PAIRS]:
        parser.error(f"no row {unknown[0]!r}: choose of {', '.join(PAIRS)}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    show(run(Options(**given), methods))


if __name__ == "__main__":
    main()
