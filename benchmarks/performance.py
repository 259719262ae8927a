"""What does the map cost? Beside the same model without it, and beside the paper's own form.

    python benchmarks/performance.py                       # what is missing (docs/performance.md)
    python benchmarks/performance.py --rows step_1x2048    # these rows again
    python benchmarks/performance.py --growth              # the curves over N, n and batch
    python benchmarks/performance.py --factor 32 --output DIR   # a quick look

Before a model with a map is timed, short batches, unpadded and padded, give the same loss and
gradients as the paper's own form, and decoding the same logits (``checked``). Then all sides take
turns; a ratio is that of the medians, with the lowest and highest of the turns. A second ``off``
side beside the first shows what noise alone gives. After every row benchmarks/results/
performance.json is written, and the table in docs/performance.md. Results of other settings,
packages or machines are left alone unless ``--overwrite`` says to begin anew.
"""

import argparse
import gc
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import papers_form
import processes
import stored
import torch
from checked import check_decoding, check_steps, papers_side
from costs import DisagreementError, Options, text_batch, timed
from growth import CURVES, kept_bytes, measure_growth, term_share
from peft import LoraConfig
from performance_page import PAGE, show, write_page
from sides import Batch, Side, bare_base, by_peft, ours, part_of, randomise, take_over
from turns import Turn, in_turn, ratio

RESULTS = Path(__file__).parent / "results" / "performance.json"
MEGABYTE = 2**20
METHOD = "lora+lmam"
PEAKS = 7  # processes of each side
OFTEN = 3  # times the turns of other rows, where those could not tell the map from noise


@dataclass(frozen=True)
class Settings:
    """What decides the figures."""

    model: str = "smollm2-135m"
    data: str = "builtin:syllogisms_train.jsonl"
    repetitions: int = 9  # a multiple of three: all sides begin as often
    threads: int = 2
    factor: int = 1  # sizes are divided by it, for a quick look


def batch_of(settings: Settings, rows: int, length: int, *, padded: bool = False) -> Batch:
    """Rows of text."""
    size = max(8, length // settings.factor)
    return text_batch(Options(settings.model, settings.data, length=size), rows, padded=padded)


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """On beside off; off beside itself, or a side without a map beside the paper's form."""
    medians = {f"{name}_ms": round(1000 * statistics.median(s), 2) for name, s in seconds.items()}
    found: dict[str, Any] = {**ratio(seconds, "on", "off"), **medians, "turns": len(seconds["on"])}
    if "off_again" in seconds:
        found["noise"] = ratio(seconds, "off_again", "off")
    if "bare" in seconds:
        found["bare"] = ratio(seconds, "bare", "off")
    return found


def with_map(settings: Settings, batch: Batch) -> Side:
    """LoRA with a map that is off its start."""
    on = ours(METHOD, bare_base(settings.model), batch)
    randomise(on)
    return on


def three_sides(on: Side, off: Callable[[], Side]) -> dict[str, Side]:
    """A side with a map, and two that are alike without, each on a model of its own."""
    return {"on": on, "off": off(), "off_again": off()}


def on_and_off(settings: Settings, batch: Batch) -> dict[str, Side]:
    """LoRA with a map, and twice the same LoRA alone."""
    on = with_map(settings, batch)
    return three_sides(on, lambda: take_over(ours("lora", bare_base(settings.model), batch), on))


def beside_noise(
    sides: dict[str, Side], turn_of: Callable[[Side], Turn], repetitions: int
) -> dict[str, Any]:
    """On beside off, and the two off sides beside each other."""
    return compared(in_turn({name: turn_of(side) for name, side in sides.items()}, repetitions))


def a_step(batch: Batch) -> Callable[[Side], Turn]:
    """A turn is a training step on a batch."""
    return lambda side: partial(timed, side, batch)


def forward(settings: Settings) -> dict[str, Any]:
    """A forward of 4 × 512 tokens."""
    asked = {"input_ids": batch_of(settings, 4, 512)["input_ids"]}
    sides = on_and_off(settings, asked)
    check_steps(settings, METHOD, sides["on"], asked)

    def turn_of(side: Side) -> Turn:
        side.model.eval()
        return torch.no_grad()(lambda t: side.model(**asked))

    return beside_noise(sides, turn_of, OFTEN * settings.repetitions)


def step(
    rows: int, length: int, *, padded: bool = False, times: int = 1
) -> Callable[[Settings], dict[str, Any]]:
    """A training step of ``rows`` × ``length`` tokens, in ``times`` the turns of other rows."""

    def measure(settings: Settings) -> dict[str, Any]:
        batch = batch_of(settings, rows, length, padded=padded)
        sides = on_and_off(settings, batch)
        check_steps(settings, METHOD, sides["on"], batch)
        return beside_noise(sides, a_step(batch), times * settings.repetitions)

    return measure


def against_the_paper(settings: Settings) -> dict[str, Any]:
    """A training step of 1 × 2048 tokens, ours and one without a map beside the paper's form."""
    batch = batch_of(settings, 1, 2048)
    mine = with_map(settings, batch)
    other = papers_side(settings, METHOD, mine, batch)
    check_steps(settings, METHOD, mine, batch, other)
    sides = {"on": mine, "off": other, "bare": ours("lora", bare_base(settings.model), batch)}
    return beside_noise(sides, a_step(batch), settings.repetitions)


def decoding(settings: Settings) -> dict[str, Any]:
    """64 tokens after a prompt of 256, twice as long as the map."""
    batch = batch_of(settings, 1, 256)
    sides = on_and_off(settings, batch)
    check_decoding(settings, METHOD, sides["on"])
    new = max(4, 64 // settings.factor)
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def turn_of(side: Side) -> Turn:
        model: Any = side.model.eval()
        model.config.use_cache = True
        return lambda t: model.generate(
            **asked, min_new_tokens=new, max_new_tokens=new, do_sample=False, use_cache=True
        )

    return beside_noise(sides, turn_of, OFTEN * settings.repetitions)


def with_lora(settings: Settings) -> dict[str, Any]:
    """A step of LoRaDA-LA, 8 × 128 tokens, beside PEFT's LoRA with the settings of its LoRA."""
    batch = batch_of(settings, 8, 128)
    mine = ours("lorada_la", bare_base(settings.model), batch)
    randomise(mine)
    sides = three_sides(
        mine, lambda: by_peft(mine, bare_base(settings.model), part_of(mine, LoraConfig))
    )
    check_steps(settings, "lorada_la", mine, batch)
    return beside_noise(sides, a_step(batch), settings.repetitions)


def peak(settings: Settings) -> dict[str, Any]:
    """The memory that a step of 1 × 2048 tokens needs, in processes that take turns."""
    batch = batch_of(settings, 1, 2048)
    check_steps(settings, METHOD, with_map(settings, batch), batch)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "papers": []}
    for _ in range(PEAKS):
        for side, runs in found.items():
            runs.append(child(settings, side))
    beyond = {side: [run["beyond"] for run in runs] for side, runs in found.items()}
    row: dict[str, Any] = dict(ratio(beyond, "ours", "papers"))
    for side, runs in found.items():
        row[f"{side}_mb"] = round(statistics.median(beyond[side]))
        row[f"{side}_total_mb"] = round(statistics.median(run["total"] for run in runs))
    return row


def child(settings: Settings, side: str) -> dict[str, float]:
    """``peak_of_step`` in a process of its own."""
    options = [f"--{f.name}={getattr(settings, f.name)}" for f in fields(settings)]
    found: dict[str, float] = json.loads(processes.printed(__file__, f"--child={side}", *options))
    return found


def peak_of_step(settings: Settings, side: str) -> dict[str, float]:
    """Megabytes of this process at the peak of a step, beyond those before it and in all."""
    batch = batch_of(settings, 1, 2048)
    base = bare_base(settings.model)
    model = ours(METHOD, base if side == "ours" else papers_form.use(base), batch)
    timed(model, {key: x[:, :8] for key, x in batch.items()}, 1)
    gc.collect()
    before = processes.memory("VmRSS")
    processes.forget_peak()  # loading had one too
    timed(model, batch, 2)
    total = processes.memory("VmHWM")
    return {"beyond": total - before, "total": total}


def saved(settings: Settings) -> dict[str, Any]:
    """Bytes kept for backward in a layer of LLaMA-7B beyond those of attention alone."""
    return {"mb": {batch: round(kept_bytes(batch) / MEGABYTE, 4) for batch in (1, 8)}}


ROWS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "forward_4x512": forward,
    "step_8x128": step(8, 128, times=OFTEN),
    "padded_8x128": step(8, 128, padded=True, times=OFTEN),
    "step_1x2048": step(1, 2048),
    "paper_1x2048": against_the_paper,
    "decode_64": decoding,
    "peak_1x2048": peak,
    "saved_bytes": saved,
    "operations": lambda settings: term_share(),
    "lorada_la": with_lora,
    "start": lambda settings: processes.start(settings.repetitions),
}


def run(
    settings: Settings,
    names: list[str],
    file: Path = RESULTS,
    page: Path = PAGE,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure rows and keep each as it comes.

    Raises:
        ValueError: if other results are there, or if a side does not compute what it should.
    """
    torch.set_num_threads(settings.threads)
    stored.code()  # of what is about to run, whatever becomes of the files meanwhile
    results = stored.load(settings, file, overwrite=overwrite)
    missing = stored.wanted(results["rows"], ROWS, names, overwrite=overwrite)
    for number, name in enumerate(missing, 1):
        started = time.monotonic()
        try:
            row = ROWS[name](settings)
        except DisagreementError as error:
            raise DisagreementError(f"{name} was not measured: {error}") from error
        gc.collect()
        stored.keep(results, "rows", name, row, file)
        write_page(results, page)
        seconds = time.monotonic() - started
        print(f"[{number}/{len(missing)}] {name}: {seconds:.0f} s", file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", default="", help=f"what to measure: {', '.join(ROWS)}; curves {', '.join(CURVES)}"
    )
    parser.add_argument("--growth", action="store_true", help="measure the curves instead")
    parser.add_argument("--child", choices=["ours", "papers"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="folder for the results and the page")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew instead of measuring what is missing"
    )
    for option in fields(Settings):
        kind = type(option.default)
        parser.add_argument(f"--{option.name}", type=kind, default=option.default)
    given = vars(parser.parse_args())
    names = [name for name in given.pop("rows").split(",") if name]
    growth, side, output = given.pop("growth"), given.pop("child"), given.pop("output")
    overwrite = given.pop("overwrite")
    known = CURVES if growth else ROWS
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--rows {unknown[0]}: no such row; there are {', '.join(known)}")
    for name, value in given.items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    settings = Settings(**given)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(settings.threads)
    if side:
        print(json.dumps(peak_of_step(settings, side)))
        return
    files = (output / RESULTS.name, output / PAGE.name) if output else (RESULTS, PAGE)
    try:
        if growth:
            measure_growth(settings, names, *files, overwrite=overwrite)
        else:
            show(run(settings, names, *files, overwrite=overwrite))
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
