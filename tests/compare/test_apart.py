"""A run in a process of its own: what goes there and comes back, and that it never stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import bert_folder, split_file
from programs import printed, until
from queue_jobs import is_gone

from lorada.compare.jobs.job import JOB_FILE, LOG_FILE
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import run_queue
from lorada.paper.table_runs import TableJob
from lorada.paper.table_spec import TableRow
from lorada.runs.result import read_result
from lorada.training.load_recipe import load_recipe

LORADA = str(Path(sys.executable).with_name("lorada"))
ROWS = [{"sentence": "ab" * (i % 4 + 1), "label": i % 2} for i in range(12)]


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
def test_the_peak_of_a_run_does_not_carry_that_of_a_larger_one_before_it(tmp_path):
    for split in ("train", "validation"):
        split_file(tmp_path / "data" / "glue" / "sst2", split, ROWS)
    # 100 megabytes of positions, no row needs more than a few, with a gradient and two moments.
    large = {"hidden_size": 256, "max_position_embeddings": 100_000}
    jobs = [
        job(tmp_path, "large", "full", bert_folder(tmp_path / "large-model", **large)),
        job(tmp_path, "small", "lora", bert_folder(tmp_path / "small-model")),
    ]
    run_queue([job.in_queue() for job in jobs], Workers(), report=print)
    first, second = (json.loads(job.stored.read_text()) for job in jobs)
    assert first["peak_memory_bytes"] > second["peak_memory_bytes"] + 250 * 2**20
    assert (tmp_path / "small" / LOG_FILE).read_text().endswith("> scoring\n")


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
    while process.poll() is None and not all(list(run.glob("runs/*/events*")) for run in runs):
        time.sleep(0.1)
    time.sleep(1)  # TensorBoard's log is begun with the first step, from which on Ctrl-C saves
    numbers = [int((run / JOB_FILE).read_text()) for run in runs]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    until(lambda: all(map(is_gone, numbers)), 10)
    saved = [path.name for run in runs for path in run.glob("checkpoint-*")]
    assert len(saved) == workers
    assert not list(tmp_path.rglob("result.json"))
    printed(*command, folder=tmp_path)
    assert [read_result(run)["resumed_from"] for run in runs] == saved
