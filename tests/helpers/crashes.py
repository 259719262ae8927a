"""Commands that are killed or run out of space, and what must be true of their folder then."""

import json
import os
import subprocess
import sys
from pathlib import Path

from folders import llama_folder, rows_file

from lorada.runs.checkpoints import last_whole_checkpoint
from lorada.runs.folder import LOCK_FILE
from lorada.runs.result import read_result
from lorada.support.files import SCRATCH

EVERY = 2  # steps between checkpoints
SETTINGS = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "max_length=32",
    "logging_steps=1", "max_steps=4", f"save_steps={EVERY}", "save_total_limit=1",
    "training.disable_tqdm=true",
]  # fmt: skip

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
STATES = (*ADAPTER, "optimizer.pt", "scheduler.pt", "rng_state.pth")


def same_files(folder, expected, *names):
    return all((folder / n).read_bytes() == (expected / n).read_bytes() for n in names)


class Lab:
    """A tiny model, its rows, and a warmed process to run commands on them."""

    def __init__(self, place: Path):
        self.place, self.runs = place, {}
        self.model, self.rows = llama_folder(place / "llama"), rows_file(place / "rows.jsonl")
        driver = Path(__file__).with_name("crash_driver.py")
        self.process = subprocess.Popen(
            [sys.executable, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def command(self, words, folder, **request):
        """Run a command in a fork of the warmed process; ``request`` as the driver takes it."""
        asked = {"words": words, "folder": str(folder), **request}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def train(self, run, *more, **request):
        given = {"method": "lorada_la", "model": self.model, "data": self.rows, "output": run}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return self.command(["train", *words, *SETTINGS, *more], run, **request)

    def whole(self, *more):
        """An uninterrupted run with these settings, that keeps every checkpoint."""
        if more not in self.runs:
            self.runs[more] = self.place / f"whole-{len(self.runs)}"
            reply = self.train(self.runs[more], *more, "save_total_limit=99")
            assert reply["code"] == 0, reply["said"]
        return self.runs[more]

    def check(self, run, steps, *more):
        """What must hold after any end of a run with these settings, which came so many steps far.

        Nothing counts that is half, at most one save interval is lost, and ``--resume`` brings it
        to the end that it would have had, byte for byte.
        """
        whole = self.whole(*more)
        if (run / "adapter").exists():
            assert same_files(run / "adapter", whole / "adapter", *ADAPTER)
        last = last_whole_checkpoint(run)
        assert last is None or same_files(last, whole / last.name, *STATES), last
        assert steps <= EVERY + (int(last.name.partition("-")[2]) if last else 0)
        if not (run / "result.json").exists():
            reply = self.train(run, *more, *(["--resume"] * (run / "recipe.yaml").exists()))
            assert reply["code"] == 0, reply["said"]
        assert not [p for p in run.rglob("*") if p.name.startswith(SCRATCH) or p.name == LOCK_FILE]
        assert same_files(run / "adapter", whole / "adapter", *ADAPTER, "README.md")
        result, expected = read_result(run), read_result(whole)
        for key in ("history", "steps", "train_loss", "relative_norm", "parameters"):
            assert getattr(result, key) == getattr(expected, key), key
