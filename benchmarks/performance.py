"""What does the map cost? Beside the same model without it, and beside the paper's own form.

    python benchmarks/performance.py                       # what is missing (docs/performance.md)
    python benchmarks/performance.py --rows step_1x2048    # these rows again
    python benchmarks/performance.py --growth              # the curves over N, n and batch

Before anything is timed, the fast form and the paper's own give the same loss and gradients. Then
all sides take turns; a ratio is that of the medians, with the lowest and highest of the turns.
``off`` twice in a row shows what noise alone gives. Writes benchmarks/results/performance.json
after every row, and the table in docs/performance.md.
"""

import argparse
import copy
import gc
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import papers_form
import torch
from costs import TOLERANCE, DisagreementError, Options, text_batch, timed
from peft import LoraConfig
from performance_page import PAGE, show, write_page
from sides import (
    Batch,
    Side,
    bare_base,
    by_peft,
    forward_backward,
    ours,
    part_of,
    randomise,
    take_over,
)
from turns import Turn, in_turn, ratio

from lorada.files import write_whole
from lorada.run.result import hardware, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "performance.json"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Settings:
    """What decides the figures."""

    model: str = "smollm2-135m"
    data: str = "builtin:syllogisms_train.jsonl"
    repetitions: int = 7
    threads: int = 2
    factor: int = 1  # sizes are divided by it, for a quick look


def batch_of(settings: Settings, rows: int, length: int, *, padded: bool = False) -> Batch:
    """Rows of text."""
    size = max(8, length // settings.factor)
    return text_batch(Options(settings.model, settings.data, length=size), rows, padded=padded)


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """On beside off, and off beside itself."""
    medians = {f"{name}_ms": round(1000 * statistics.median(s), 2) for name, s in seconds.items()}
    found: dict[str, Any] = {**ratio(seconds, "on", "off"), **medians}
    if "off_again" in seconds:
        found["noise"] = ratio(seconds, "off_again", "off")
    return found


def on_and_off(settings: Settings, batch: Batch) -> tuple[Side, Side]:
    """LoRA with a map, and the same LoRA alone."""
    on = with_map(settings, batch)
    return on, take_over(ours("lora", bare_base(settings.model), batch), on)


def with_map(settings: Settings, batch: Batch) -> Side:
    """LoRA with a map that is off its start."""
    on = ours("lora+lmam", bare_base(settings.model), batch)
    randomise(on)
    return on


def beside_noise(on: Turn, off: Turn, repetitions: int) -> dict[str, Any]:
    """On beside off, and off twice."""
    return compared(in_turn({"on": on, "off": off, "off_again": off}, repetitions))


def forward(settings: Settings) -> dict[str, Any]:
    """A forward of 4 × 512 tokens."""
    batch = batch_of(settings, 4, 512)
    on, off = on_and_off(settings, batch)

    def run(side: Side) -> Turn:
        side.model.eval()

        @torch.no_grad()
        def turn(t: int) -> None:
            side.model(input_ids=batch["input_ids"])

        return turn

    return beside_noise(run(on), run(off), settings.repetitions)


def step(rows: int, length: int, *, padded: bool = False) -> Callable[[Settings], dict[str, Any]]:
    """A training step of ``rows`` × ``length`` tokens."""

    def measure(settings: Settings) -> dict[str, Any]:
        batch = batch_of(settings, rows, length, padded=padded)
        on, off = on_and_off(settings, batch)
        turns = (partial(timed, side, batch) for side in (on, off))
        return beside_noise(*turns, settings.repetitions)

    return measure


def papers_side(settings: Settings, mine: Side, batch: Batch) -> Side:
    """The same model, its attention in the paper's form."""
    side = ours("lora+lmam", papers_form.use(bare_base(settings.model)), batch)
    return take_over(side, mine)


def check(mine: Side, other: Side, batch: Batch) -> None:
    """Both give the same loss and gradients.

    Raises:
        DisagreementError: naming the first difference.
    """
    found = []
    for side in (mine, other):
        side.model.eval()  # no dropout, which draws in another order
        loss = forward_backward(side, batch, 0)
        found.append((loss, {n: p.grad for n, p in side.parameters.items()}))
        for parameter in side.parameters.values():
            parameter.grad = None
        side.model.train()
    (loss, gradients), (wanted, right) = found
    if not (loss - wanted).abs() <= TOLERANCE * wanted.abs():
        raise DisagreementError(f"the loss is {loss:.7g}, not {wanted:.7g}")
    for name, gradient in right.items():
        error = float((gradients[name] - gradient).norm())
        if not error <= 10 * TOLERANCE * float(gradient.norm()):
            raise DisagreementError(f"the gradient of {name} is {error:.2g} off")


def against_the_paper(settings: Settings) -> dict[str, Any]:
    """A training step of 1 × 2048 tokens, ours beside the paper's form."""
    batch = batch_of(settings, 1, 2048)
    mine = with_map(settings, batch)
    other = papers_side(settings, mine, batch)
    check(mine, other, {key: x[:, :256] for key, x in batch.items()})
    sides = {name: partial(timed, side, batch) for name, side in (("on", mine), ("off", other))}
    return compared(in_turn(sides, settings.repetitions))


def decoding(settings: Settings) -> dict[str, Any]:
    """64 tokens after a prompt of 256, twice as long as the map."""
    batch = batch_of(settings, 1, 256)
    on, off = on_and_off(settings, batch)
    new = max(4, 64 // settings.factor)
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def run(side: Side) -> Turn:
        side.model.eval()
        side.model.config.use_cache = True
        return lambda t: side.model.generate(
            **asked, min_new_tokens=new, max_new_tokens=new, do_sample=False, use_cache=True
        )

    return beside_noise(run(on), run(off), settings.repetitions)


def with_lora(settings: Settings) -> dict[str, Any]:
    """A step of LoRaDA-LA, 8 × 128 tokens, beside PEFT's LoRA with the settings of its LoRA."""
    batch = batch_of(settings, 8, 128)
    base = bare_base(settings.model)
    second = copy.deepcopy(base)
    mine = ours("lorada_la", base, batch)
    lora: Any = part_of(mine, LoraConfig)
    other = by_peft(mine, second, lora)
    turns = (partial(timed, side, batch) for side in (mine, other))
    return beside_noise(*turns, settings.repetitions)


def child(settings: Settings, what: str) -> str:
    """What this file prints in a process of its own."""
    options = [f"--{f.name}={getattr(settings, f.name)}" for f in fields(settings)]
    done = subprocess.run(
        [sys.executable, __file__, f"--child={what}", *options],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def peak(settings: Settings) -> dict[str, Any]:
    """Most memory that a step of 1 × 2048 tokens takes beyond what stood there before it."""
    found = {side: float(child(settings, side)) for side in ("ours", "papers")}
    return {
        "ratio": round(found["ours"] / found["papers"], 4),
        **{f"{side}_mb": round(megabytes) for side, megabytes in found.items()},
    }


def peak_of_step(settings: Settings, side: str) -> float:
    """In a process of its own: megabytes of one step."""
    batch = batch_of(settings, 1, 2048)
    base = bare_base(settings.model)
    model = ours("lora+lmam", base if side == "ours" else papers_form.use(base), batch)
    timed(model, {key: x[:, :8] for key, x in batch.items()}, 1)
    gc.collect()
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading had one too
    timed(model, batch, 2)
    return process_memory("VmHWM") - before


def process_memory(what: str) -> float:
    """Megabytes of this process: what it holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) / 1024


def saved(settings: Settings) -> dict[str, Any]:
    """Bytes kept for backward in a layer of LLaMA-7B beyond those of attention alone."""
    from growth import kept_bytes

    found = {batch: kept_bytes(batch) for batch in (1, 8)}
    return {"mb": {batch: round(size / MEGABYTE, 4) for batch, size in found.items()}}


def operations(settings: Settings) -> dict[str, Any]:
    """Multiplications of the term beside the layer's, N = 512, and the paper's Table 2."""
    from growth import term_share

    return term_share()


START = {
    "help": "import sys, lorada_cli; sys.argv = ['lorada', '--help']; lorada_cli.main()",
    "methods": "import sys, lorada_cli; sys.argv = ['lorada', 'methods']; lorada_cli.main()",
    "peft": "import peft",
    "lorada": "import peft, lorada",
}


def start(settings: Settings) -> dict[str, Any]:
    """Seconds to list commands and methods, and of ``import lorada`` beyond ``import peft``."""

    def run(code: str) -> Turn:
        command = [sys.executable, "-c", code]
        return lambda t: subprocess.run(command, capture_output=True, check=False)

    seconds = in_turn({name: run(code) for name, code in START.items()}, settings.repetitions)
    beyond = [a - b for a, b in zip(seconds["lorada"], seconds["peft"], strict=True)]
    return {
        "help_s": round(statistics.median(seconds["help"]), 3),
        "methods_s": round(statistics.median(seconds["methods"]), 3),
        "import_s": round(statistics.median(beyond), 3),
    }


ROWS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "forward_4x512": forward,
    "step_8x128": step(8, 128),
    "padded_8x128": step(8, 128, padded=True),
    "step_1x2048": step(1, 2048),
    "paper_1x2048": against_the_paper,
    "decode_64": decoding,
    "peak_1x2048": peak,
    "saved_bytes": saved,
    "operations": operations,
    "lorada_la": with_lora,
    "start": start,
}


def run(settings: Settings, names: list[str], file: Path = RESULTS, page: Path = PAGE) -> Any:
    """Measure rows and keep each as it comes."""
    torch.set_num_threads(settings.threads)
    about = {**vars(settings), "hardware": hardware(), "versions": versions()}
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if results.get("settings") != about:
        results = {"settings": about, "rows": {}, "growth": {}}
    for number, name in enumerate(names or [n for n in ROWS if n not in results["rows"]], 1):
        started = time.monotonic()
        results["rows"][name] = ROWS[name](settings)
        gc.collect()
        write_whole(file, json.dumps(results, indent=1) + "\n")
        write_page(results, page)
        print(f"[{number}] {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="", help=f"rows to measure: {', '.join(ROWS)}")
    parser.add_argument("--growth", action="store_true", help="measure the curves instead")
    parser.add_argument("--child", choices=["ours", "papers"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="folder for the results and the page")
    for option in fields(Settings):
        kind = type(option.default)
        parser.add_argument(f"--{option.name}", type=kind, default=option.default)
    given = vars(parser.parse_args())
    names = [name for name in given.pop("rows").split(",") if name]
    growth, what, output = given.pop("growth"), given.pop("child"), given.pop("output")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows {unknown[0]}: no such row; there are {', '.join(ROWS)}")
    settings = Settings(**given)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(settings.threads)
    if what:
        print(peak_of_step(settings, what))
        return
    files = (output / RESULTS.name, output / PAGE.name) if output else (RESULTS, PAGE)
    try:
        if growth:
            from growth import measure_growth

            measure_growth(settings, *files)
            return
        show(run(settings, names, *files))
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
