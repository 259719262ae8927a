"""Train every method for 50 steps on real rows: does its loss fall, and what does a step cost?

    python benchmarks/train_every_method.py --data-dir DIR          # or LORADA_DATA; all methods
    python benchmarks/train_every_method.py --methods lora,quanta   # only these

Each method trains in a process of its own, through what ``lorada train`` runs; one that is done is
not repeated. Methods that have settings for LLaMA train SmolLM2-135M on BoolQ (with the prompts of
LLM-Adapters), the others MiniLM-L6 on SST-2.
Writes benchmarks/results/methods.json and a section of docs/methods.md.
"""

import argparse
import json
import logging
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from library import fresh_process
from library.measuring import date_of, deciding_versions, now
from library.page import markdown_table, write_marked
from library.training_runs import BOOLQ, SST2, write_first_rows
from torch.optim.optimizer import register_optimizer_step_post_hook

from lorada import METHODS
from lorada.runs.machine import hardware
from lorada.support.files import write_atomic
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

ROOT = Path(__file__).parents[1]
WITH_MAP = ("lora", "dora", "series", "parallel", "quanta", "longlora")  # also trained with a map
NAMES = [*METHODS, *(f"{name}+lmam" for name in WITH_MAP)]
MAX_LENGTH, BATCH, TRAIN_ROWS, HELD_OUT = 128, 8, 2000, 64
# For methods without a learning rate of their own; full fine-tuning needs a lower one.
RATE, RATES = 1e-3, {"full": 5e-5}
# Has settings for every family, but trains biases, which SmolLM2 has none of.
ENCODERS = ("bitfit",)
# On MiniLM these have settings that are not from the paper.
NOT_FROM_THE_PAPER = ("adalora", "pa_attn_ffn", "prefix_lora")


def decodes(name: str) -> bool:
    """Whether a method trains the decoder here, else the encoder."""
    method = METHODS[name.removesuffix("+lmam")]
    return name not in ENCODERS and (not method.parts or "llama" in method.parts)


def train_one(job: dict[str, Any]) -> dict[str, Any]:
    """Train one method in this process.

    Args:
        job: ``method``, ``model``, ``task``, ``data``, ``eval_data``, ``steps``.

    Returns:
        The row: losses per token or row, seconds per step without scoring, bytes of memory.
    """
    logging.basicConfig(level=logging.ERROR)
    step_ends: list[float] = []
    rates: set[float] = set()

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        step_ends.append(time.perf_counter())
        rates.update(group["initial_lr"] for group in optimizer.param_groups)

    register_optimizer_step_post_hook(note)
    name, model = job["method"], job["model"]
    with tempfile.TemporaryDirectory() as folder:
        own = METHODS[name.removesuffix("+lmam")].arguments.get("learning_rate")
        rate = own or RATES.get(name, RATE)
        settings = [
            f"max_length={MAX_LENGTH}", f"training.max_steps={job['steps']}",
            f"training.per_device_train_batch_size={BATCH}",
            f"training.per_device_eval_batch_size={BATCH}", f"training.learning_rate={rate}",
            "training.report_to=[]", "training.save_strategy=no", "training.eval_on_start=true",
            "training.eval_strategy=steps", f"training.eval_steps={job['steps']}",
        ]  # fmt: skip
        options = {key: job[key] for key in ("method", "data", "eval_data")}
        recipe = load_recipe(
            None, settings, {**options, "model": model, "output": str(Path(folder) / "run")}
        )
        result = train(recipe, quiet=True).result
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    return {
        "model": Path(model).name,
        "task": job["task"],
        "steps": result.steps,
        "rates": sorted(rates),
        "trainable": result.parameters.trainable,
        "percent": result.parameters.percent,
        "seconds_per_step": (step_ends[-1] - step_ends[0]) / (len(step_ends) - 1),
        "peak_memory_bytes": result.peak_memory_bytes,
        "loss_before": losses[0],
        "loss_after": losses[-1],
    }


def train_in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Train one method in a fresh process, so that its peak memory is its own.

    Returns:
        The row; that of a method that fails says why.
    """
    try:
        row: dict[str, Any] = fresh_process.call(train_one, job, stderr=subprocess.PIPE)
        return row
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"exit code {error.returncode}: {last}", "task": job["task"]}


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    paper = METHODS[name.removesuffix("+lmam")].paper
    linked = f"[`{name}`]({paper})" if paper else f"`{name}`"
    if "error" in row:
        return [linked, f"failed: {row['error'].replace('|', '/')}", *[""] * 10, date_of(row)]
    rates = ", ".join(f"{rate:g}" for rate in row["rates"])
    seconds = row["seconds_per_step"]  # None where other programs ran beside the row
    fell = "yes" if row["loss_after"] < row["loss_before"] else "**no**"
    return [
        linked, row["model"], row["task"], f"{row['trainable']:,}", f"{row['percent']:.3f}",
        str(row["steps"]), rates, f"{seconds:.2f}" if seconds else "–",
        f"{row['peak_memory_bytes'] / 2**20:,.0f}", f"{row['loss_before']:.4f}",
        f"{row['loss_after']:.4f}", fell, date_of(row),
    ]  # fmt: skip


COLUMNS = (
    "method", "model", "rows", "p", "p/N, %", "steps", "learning rate", "s per step", "MiB",
    "loss before", "loss after", "fell", "date",
)  # fmt: skip
SCRIPT = Path(__file__).name
INTRO = """
Made by `{command}`. Each method trains in a process of its own, through what `lorada train` runs:
{steps} steps of {batch} rows of at most {length} tokens. BoolQ has the prompts of LLM-Adapters.
These runs show that a method learns and what it costs, not how good it is.

**Losses** are those of the same {held_out} held-out rows before the first step and after the last,
as the mean over batches: per token of the response, or per row of a classifier. A classifier has a
new head, which trains too and is not counted in p.

**The learning rate** is the method's own where it has one, else {rate:g} (5e-5 for full
fine-tuning). A map's is 0.4 times that, its default. For a map alone fifty steps are few at that
rate: at 5e-3, `lmam` falls to 0.1457 in as many.

**Settings.** {others} have settings for DeBERTa or BART only in the paper; these are used
for MiniLM here, with the names of its modules.

**Seconds per step** leave out the first step, the scoring and what a method does before training.
There are none (–) where other programs slowed the machine.
**Peak memory** is that of the whole process, with the libraries (about 600 MiB) and the scoring.
A step of `lora` took 1.56 s on 25 November 2026 and 1.32 s on 3 December, so seconds of different
dates are not to be compared: [what a step costs](#what-a-step-costs) compares methods in turns.

{machine}
"""


def page(results: dict[str, Any]) -> str:
    """The section of all rows, in Markdown."""
    machine, packages = results["hardware"], results["versions"]
    where = machine["accelerator"] or machine["cpu"]
    text = (
        f"{where}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; "
        + ", ".join(f"{package} {number}" for package, number in packages.items())
    )
    intro = INTRO.format(
        command="python benchmarks/train_every_method.py", steps=results["steps"], batch=BATCH,
        length=MAX_LENGTH, held_out=HELD_OUT, rate=RATE, machine=text,
        others=", ".join(f"`{name}`" for name in NOT_FROM_THE_PAPER),
    )  # fmt: skip
    rows = results["rows"]
    lines = [cells(name, rows[name]) for name in NAMES if name in rows]
    return f"{intro}\n{markdown_table(COLUMNS, lines)}\n"


def run(options: argparse.Namespace) -> None:
    """Train the methods that are asked for and not done; save the files after each."""
    results: dict[str, Any] = {"rows": {}}
    if options.results.is_file():
        results = json.loads(options.results.read_text(encoding="utf-8"))
    results |= {"hardware": hardware(), "versions": deciding_versions(), "steps": options.steps}
    rows = results["rows"]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            task: write_first_rows(
                options.data_dir, task, Path(folder) / f"{task}-{{}}.jsonl", TRAIN_ROWS, HELD_OUT
            )
            for task in {BOOLQ if decodes(name) else SST2 for name in options.methods}
        }
        for name in options.methods:
            if rows.get(name, {}).get("steps") != options.steps:
                task, model = SST2, options.encoder
                if decodes(name):
                    task, model = BOOLQ, options.decoder
                job = {"method": name, "task": task, "model": model, "steps": options.steps}
                rows[name] = {**train_in_process({**job, **files[task]}), "measured": now()}
            print("|", " | ".join(cells(name, rows[name])), "|", flush=True)
            write_atomic(options.results, json.dumps(results, indent=1) + "\n")
            write_marked(options.page, SCRIPT, page(results))


def method_names(text: str) -> list[str]:
    """Read the names of methods, with commas between them."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(NAMES)}")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LORADA_DATA"))
    parser.add_argument("--methods", type=method_names, default=NAMES, help="names, with commas")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--decoder", default="smollm2-135m", help="model of decoder methods")
    parser.add_argument("--encoder", default="minilm-l6", help="model of encoder methods")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/methods.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/methods.md")
    options = parser.parse_args(arguments)
    if options.data_dir is None:
        parser.error("no rows: pass --data-dir DIR, or set LORADA_DATA")
    if options.steps < 2:
        parser.error(f"--steps {options.steps} must be at least 2, to time one")
    try:
        run(options)
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
