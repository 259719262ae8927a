"""Commands that are killed or run out of space, and what must be true of their folder then."""

import copy
import json
import os
import random
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from folders import llama_folder, rows_file
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from lorada.runs.folder import LOCK_FILE, last_whole_checkpoint
from lorada.support.files import SCRATCH

# Seed of what these tests draw at random.
SEED = int(os.environ.get("LORADA_TEST_SEED", "0"))
EVERY = 2  # steps between checkpoints
SETTINGS = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "max_length=32",
    "logging_steps=1", "max_steps=4", f"save_steps={EVERY}", "save_total_limit=1",
    "training.disable_tqdm=true",
]  # fmt: skip
KEEP_ALL = "save_total_limit=99"
# What PEFT, safetensors and json say of a folder that is not whole.
REFUSED = (ValueError, OSError, SafetensorError)


class Lab:
    """A tiny model, its rows, and a warmed process to run commands on them."""

    def __init__(self, place: Path):
        self.place = place
        self.model = llama_folder(place / "llama")
        self.rows = rows_file(place / "rows.jsonl")
        self.base = AutoModelForCausalLM.from_pretrained(self.model)
        driver = Path(__file__).with_name("crash_driver.py")
        self.process = subprocess.Popen(
            [sys.executable, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert "ready" in self.process.stdout.readline()
        self.runs = {}

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def words(self, run, *more):
        return [
            "train", "--method", "lorada_la", "--model", str(self.model), "--data", str(self.rows),
            "--output", str(run), *SETTINGS, *more,
        ]  # fmt: skip

    def command(self, words, folder, **request):
        """Run a command in a fork of the warmed process; ``request`` as the driver takes it."""
        asked = {"words": words, "folder": str(folder), **request}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def train(self, run, *more, **request):
        return self.command(self.words(run, *more), run, **request)

    def whole(self, *more):
        """An uninterrupted run with these settings, that keeps every checkpoint."""
        if more not in self.runs:
            run = self.place / f"whole-{len(self.runs)}"
            reply = self.train(run, *more, KEEP_ALL)
            assert reply["code"] == 0, reply["said"]
            self.runs[more] = run
        return self.runs[more]

    @cached_property
    def points(self):
        """The write points of an uninterrupted run."""
        reply = self.train(self.place / "points")
        assert reply["code"] == 0, reply["said"]
        return reply["points"]

    def loads(self, folder):
        """Whether PEFT loads a folder by hand."""
        try:
            PeftModel.from_pretrained(copy.deepcopy(self.base), folder)
        except REFUSED:
            return False
        return True


def random_numbers():
    """A generator seeded with SEED, which is printed, and so shown where a test fails."""
    print(f"random numbers of LORADA_TEST_SEED={SEED}")
    return random.Random(SEED)


def number(points, pattern):
    """The first write point of this name, counted from 1."""
    return next(i for i, point in enumerate(points, 1) if re.search(pattern, point))


def same_files(folder, expected, names):
    return all((folder / n).read_bytes() == (expected / n).read_bytes() for n in names)


ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
STATES = (*ADAPTER, "optimizer.pt", "scheduler.pt", "rng_state.pth")


def check_what_is_left(lab, run, whole, steps):
    """What must hold after any end: nothing half is loadable, at most one save interval is lost.

    ``run`` ended after ``steps`` steps; ``whole`` is an uninterrupted run to compare it with.
    """
    if (run / "adapter").exists():
        assert same_files(run / "adapter", whole / "adapter", [*ADAPTER, "README.md"])
        assert lab.loads(run / "adapter")
    for checkpoint in run.glob("checkpoint-*"):
        if lab.loads(checkpoint):  # its config may be PEFT's own, with sets in another order
            assert same_files(checkpoint, whole / checkpoint.name, ADAPTER[:1]), checkpoint
    last = last_whole_checkpoint(run)
    if last is not None:
        assert same_files(last, whole / last.name, STATES), last
    saved = int(last.name.partition("-")[2]) if last else 0
    assert steps - saved <= EVERY, f"{steps} steps, {saved} saved"
    if (run / "result.json").exists():
        check_result(run, whole)


def check_result(run, whole):
    """A finished run is the uninterrupted one, byte for byte, and nothing else lies about."""
    assert same_files(run / "adapter", whole / "adapter", [*ADAPTER, "README.md"])
    result, expected = (json.loads((r / "result.json").read_text()) for r in (run, whole))
    for key in ("history", "steps", "train_loss", "relative_norm", "parameters"):
        assert result[key] == expected[key], key


def check_the_end(lab, run, whole, *more):
    """``--resume`` brings the run to the end that it would have had."""
    if not (run / "result.json").exists():
        began = (run / "recipe.yaml").exists()
        reply = lab.train(run, *more, *(["--resume"] if began else []))
        assert reply["code"] == 0, reply["said"]
        left = [p for p in run.rglob("*") if p.name.startswith(SCRATCH) or p.name == LOCK_FILE]
        assert left == []
    check_result(run, whole)
