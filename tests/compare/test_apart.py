"""A run in a process of its own: what goes there and comes back, and that it never stays behind."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from folders import bert_folder, split_file
from programs import printed, until
from queue_jobs import is_gone

from lorada.compare.jobs import own_process
from lorada.paper.table_runs import TableJob, carry_out
from lorada.paper.table_spec import TableRow
from lorada.runs.result import read_result
from lorada.training.callbacks import DivergedError
from lorada.training.load_recipe import load_recipe

LORADA = str(Path(sys.executable).with_name("lorada"))
ROWS = [{"sentence": "ab" * (i % 4 + 1), "label": i % 2} for i in range(12)]


@pytest.mark.apart
def test_what_a_function_gives_says_and_logs_elsewhere_comes_here(caplog, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    assert own_process.call(os.getpid) not in (os.getpid(), None)
    assert own_process.call(partial(int, base=2), "101") == 5
    own_process.call(print, "said")
    with caplog.at_level(logging.WARNING):
        own_process.call(logging.getLogger("far").warning, "%d of %d", 1, 2)
        own_process.call(logging.getLogger("far").info, "too quiet")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("far", "1 of 2")]
    assert capfd.readouterr().err == "said\n"  # beside what a program reads from this process


@pytest.mark.apart
def test_torch_is_imported_there_by_who_needs_it():
    assert own_process.call(eval, "'torch' in __import__('sys').modules") is False


ENDS = {
    "a mistake": ("raise ValueError('no such thing')", ValueError, "no such thing"),
    "a kind of ours": (
        "from lorada.training.callbacks import DivergedError as D; raise D('nan')",
        DivergedError,
        "nan",
    ),
    "a kind that cannot be sent": (
        "class E(ValueError):\n def __init__(self, a, b): super().__init__(a)\nraise E('odd', 2)",
        ValueError, "odd",
    ),
    "an end without a word": ("import os; os._exit(3)", OSError, "with code 3"),
    "a kill": ("import os; os.kill(os.getpid(), 9)", MemoryError, "was killed"),
    "an interrupt": ("import signal; signal.raise_signal(2)", KeyboardInterrupt, None),
}  # fmt: skip


@pytest.mark.apart
@pytest.mark.parametrize("end", ENDS)
def test_however_it_ends_elsewhere_it_ends_here(end):
    code, kind, text = ENDS[end]
    with pytest.raises(kind, match=text) as caught:
        own_process.call(exec, code)
    assert type(caught.value) is kind


def child_of(process):
    """The process that another one has started, once it is there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError(process.communicate())


def job(place, name, method, model):
    settings = ["max_steps=2", "per_device_train_batch_size=4", "training.report_to=[]"]
    fixed = {"method": method, "model": str(model), "task": "sst2", "data_dir": str(place / "data")}
    recipe = load_recipe(
        None,
        [*settings, "max_length=32", "save_strategy=no"],
        {**fixed, "output": str(place / name)},
    )
    row = TableRow(key=name, label=name, method=method)
    return TableJob(row, ["sst2"], 1, recipe, place / "results" / f"{name}.json")


@pytest.mark.slow
@pytest.mark.apart
def test_the_peak_of_a_run_does_not_carry_that_of_a_larger_one_before_it(tmp_path):
    for split in ("train", "validation"):
        split_file(tmp_path / "data" / "glue" / "sst2", split, ROWS)
    # 100 megabytes of positions, no row needs more than a few, with a gradient and two moments.
    large = {"hidden_size": 256, "max_position_embeddings": 100_000}
    jobs = [
        job(tmp_path, "large", "full", bert_folder(tmp_path / "large-model", **large)),
        job(tmp_path, "small", "lora", bert_folder(tmp_path / "small-model")),
    ]
    said = []
    first, second = (own_process.call(carry_out, job, report=said.append) for job in jobs)
    assert first["peak_memory_bytes"] > second["peak_memory_bytes"] + 250 * 2**20
    assert second == json.loads(jobs[1].stored.read_text())
    assert [line.rpartition(" ")[2] for line in said] == ["training", "scoring"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_saves_the_runs_of_a_table_and_ends_the_command(workers, tmp_path):
    for split in ("train", "validation"):
        rows = [{"sentence1": "ab" * (i + 1), "sentence2": "b", "label": i % 2} for i in range(12)]
        split_file(tmp_path / "data" / "glue" / "rte", split, rows)
    command = [
        LORADA, "table", "5", "--scale", "local", "--rows", "lora", "--tasks", "rte", "--seeds",
        "1,2"[: 2 * workers - 1], "--data-dir", "data", "--resume", "--workers", str(workers),
    ]  # fmt: skip
    runs = [tmp_path / f"runs/table5-local/lora/rte/seed{i + 1}" for i in range(workers)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    child = child_of(process)
    while process.poll() is None and not all(list(run.glob("runs/*/events*")) for run in runs):
        time.sleep(0.1)
    time.sleep(1)  # TensorBoard's log is begun with the first step, from which on Ctrl-C saves
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    until(lambda: is_gone(child), 10)
    saved = [path.name for run in runs for path in run.glob("checkpoint-*")]
    assert len(saved) == workers
    assert not list(tmp_path.rglob("result.json"))
    printed(*command, folder=tmp_path)
    assert [read_result(run)["resumed_from"] for run in runs] == saved
