"""Every method by name, trained for 50 steps on real rows: does its loss fall, and at what cost?

    python benchmarks/methods.py --data-dir DIR          # or LORADA_DATA; all methods, in turn
    python benchmarks/methods.py --methods lora,quanta   # only these

Each method runs in a process of its own, through what ``lorada train`` runs; one that is done is
not repeated. Methods that have settings for LLaMA train SmolLM2-135M on BoolQ (the prompts of
LLM-Adapters), the others MiniLM-L6 on SST-2.
Writes benchmarks/results/methods.json and docs/methods.md.
"""

import argparse
import gzip
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from lorada import METHODS
from lorada.runs.folder.result import hardware, versions
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.support.files import write_whole

ROOT = Path(__file__).parents[1]
PLUGGED = ("lora", "dora", "series", "parallel", "quanta", "longlora")
NAMES = [*METHODS, *(f"{name}+lmam" for name in PLUGGED)]
MAX_LENGTH, BATCH, TRAIN_ROWS, HELD_OUT = 128, 8, 2000, 64
# For methods without a learning rate of their own; what moves the base itself needs a lower one.
RATE, RATES = 1e-3, {"full": 5e-5}
# What has settings for every family, but needs biases, which SmolLM2 has none of.
ENCODERS = ("bitfit",)
# What the paper has for DeBERTa or BART only, and takes settings that are not from it on MiniLM.
OURS = ("adalora", "pa_attn_ffn", "prefix_lora")
BOOLQ, SST2 = "BoolQ", "SST-2"
SOURCES = {
    BOOLQ: ("commonsense_llm_adapters/boolq", "train", "test"),
    SST2: ("glue/sst2", "train", "validation"),
}


def decodes(name: str) -> bool:
    """Whether a method trains the decoder here, else the encoder."""
    method = METHODS[name.removesuffix("+lmam")]
    return name not in ENCODERS and (not method.parts or "llama" in method.parts)


def write_rows(data_dir: Path, folder: Path, task: str) -> dict[str, str]:
    """The first rows of a task as prompt/response or text/label, and the first held-out ones."""
    source, *splits = SOURCES[task]
    files = {}
    for key, split, count in zip(
        ("data", "eval_data"), splits, (TRAIN_ROWS, HELD_OUT), strict=True
    ):
        path = data_dir / source / f"{split}.jsonl.gz"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: --data-dir (or LORADA_DATA) must name its folder")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, count)]
        if task == BOOLQ:
            rows = [
                {"prompt": f"{row['instruction']}\n", "response": row["output"]} for row in rows
            ]
        else:
            rows = [{"text": row["sentence"], "label": str(row["label"])} for row in rows]
        files[key] = str(folder / f"{task}-{split}.jsonl")
        write_whole(Path(files[key]), "".join(json.dumps(row) + "\n" for row in rows))
    return files


def train_one(job: dict[str, Any]) -> dict[str, Any]:
    """Train one method, in this process, and say what came of it.

    Args:
        job: ``method``, ``model``, ``task``, ``data``, ``eval_data``, ``steps``.

    Returns:
        The row: losses per token or row, seconds per step without evaluation, bytes of memory.
    """
    ends: list[float] = []
    rates: set[float] = set()

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        ends.append(time.perf_counter())
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
    losses = [entry["eval_loss"] for entry in result["history"] if "eval_loss" in entry]
    return {
        "model": Path(model).name,
        "task": job["task"],
        "steps": result["steps"],
        "rates": sorted(rates),
        "trainable": result["parameters"]["trainable"],
        "percent": result["parameters"]["percent"],
        "seconds_per_step": (ends[-1] - ends[0]) / (len(ends) - 1),
        "peak_memory_bytes": result["peak_memory_bytes"],
        "loss_before": losses[0],
        "loss_after": losses[-1],
    }


def run_alone(job: dict[str, Any]) -> dict[str, Any]:
    """The row of a job from a process of its own, so that its peak memory is its own.

    A method that fails costs its row only, which then says what was wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        done = subprocess.run(
            [sys.executable, __file__, "--job", json.dumps(job), str(answer)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if answer.is_file():
            row: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return row
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return {"error": f"exit code {done.returncode}: {last}", "task": job["task"]}


def line(name: str, row: dict[str, Any]) -> str:
    """One row of the table."""
    linked = f"[`{name}`]({METHODS[name.removesuffix('+lmam')].paper})"
    if "error" in row:
        return f"| {linked} | failed: {row['error'].replace('|', '/')} | | | | | | | | | |"
    rates = ", ".join(f"{rate:g}" for rate in row["rates"])
    fell = "yes" if row["loss_after"] < row["loss_before"] else "**no**"
    return (
        f"| {linked} | {row['model']} | {row['task']} | {row['trainable']:,} "
        f"| {row['percent']:.3f} | {row['steps']} | {rates} | {row['seconds_per_step']:.2f} "
        f"| {row['peak_memory_bytes'] / 2**20:,.0f} | {row['loss_before']:.4f} "
        f"| {row['loss_after']:.4f} | {fell} |"
    )


HEADER = """\
# Every method, trained on real rows

Made by `{command}`, one process per method, through what `lorada train` runs.
Each method trains {steps} steps of {batch} rows of at most {length} tokens. Losses are those of
the same {held_out} held-out rows before the first step and after the last, the mean over batches:
per token of the response, or per row of a classifier, whose new head trains too and is not counted
in p. BoolQ is in LLM-Adapters' prompts. The learning rate is the method's own where it has one,
else {rate:g} (5e-5 for full fine-tuning), with 5e-3 for maps. These runs show that a method learns
and what it costs, not how good it is. Of {ours} the paper has settings for DeBERTa or
BART only, which are taken to MiniLM here, with the names of its modules. AdaLoRA's losses hold its
regulariser.

Seconds per step leave out the first step, the scoring and what a method does before training. Peak
memory is that of the whole process, with the libraries (about 600 MiB) and the scoring.

{machine}

| method | model | rows | p | p/N, % | steps | learning rate | s per step | MiB | loss before \
| loss after | fell |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def page(results: dict[str, Any]) -> str:
    """The Markdown page of all rows."""
    machine, packages = results["hardware"], results["versions"]
    where = machine["accelerator"] or machine["cpu"]
    text = (
        f"{where}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; "
        + ", ".join(f"{package} {number}" for package, number in packages.items())
    )
    rows = results["rows"]
    head = HEADER.format(
        command="python benchmarks/methods.py", steps=results["steps"], batch=BATCH,
        length=MAX_LENGTH, held_out=HELD_OUT, rate=RATE, machine=text,
        ours=", ".join(f"`{name}`" for name in OURS),
    )  # fmt: skip
    return "\n".join([head, *(line(name, rows[name]) for name in NAMES if name in rows)]) + "\n"


def done(row: dict[str, Any] | None, steps: int) -> bool:
    return row is not None and row.get("steps") == steps


def bench(options: argparse.Namespace) -> None:
    """Train what is asked for and not done yet; the files are written after each method."""
    results: dict[str, Any] = {"rows": {}}
    if options.results.is_file():
        results = json.loads(options.results.read_text(encoding="utf-8"))
    results |= {"hardware": hardware(), "versions": versions(), "steps": options.steps}
    rows = results["rows"]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            task: write_rows(options.data_dir, Path(folder), task)
            for task in {BOOLQ if decodes(name) else SST2 for name in options.methods}
        }
        for name in options.methods:
            if not done(rows.get(name), options.steps):
                task, model = SST2, options.encoder
                if decodes(name):
                    task, model = BOOLQ, options.decoder
                job = {"method": name, "task": task, "model": model}
                rows[name] = run_alone({**job, "steps": options.steps, **files[task]})
            print(line(name, rows[name]), flush=True)
            write_whole(options.results, json.dumps(results, indent=1) + "\n")
            write_whole(options.page, page(results))


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(NAMES)}")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LORADA_DATA"))
    parser.add_argument("--methods", type=names, default=NAMES, help="names, with commas")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--decoder", default="smollm2-135m", help="model of decoder methods")
    parser.add_argument("--encoder", default="minilm-l6", help="model of encoder methods")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/methods.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/methods.md")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    if options.job is not None:
        write_whole(Path(options.job[1]), json.dumps(train_one(json.loads(options.job[0]))))
        return
    if options.data_dir is None:
        parser.error("no rows: pass --data-dir DIR, or set LORADA_DATA")
    if options.steps < 2:
        parser.error(f"--steps {options.steps} must be at least 2, to time one")
    try:
        bench(options)
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
