"""What dies on a Ray cluster: the process of a job, once or always."""

import os
import signal
import threading
from functools import partial

import pytest

pytest.importorskip("ray", reason="needs the extra `cluster`")

import ray_jobs
from folders import llama_folder, rows_file
from programs import until
from trained import run_recipe

from lorada.compare.jobs.job import JOB_FILE, Job
from lorada.compare.jobs.queue import run_queue
from lorada.compare.jobs.ray_cluster import RayEngine
from lorada.runs.result import read_result

pytestmark = pytest.mark.slow
STEPS = ["max_steps=100", "save_steps=5", "logging_steps=1", "report_to=[]", "max_length=32"]


def training_job(place, name):
    run = place / name
    recipe = run_recipe(STEPS, place, run, rows="rows", method="lorada_la")
    return Job(name, partial(ray_jobs.train_run, recipe), run, (run / "result.json").is_file,
               reads=(place / "llama", place / "rows.jsonl"))  # fmt: skip


def test_a_training_that_is_killed_on_a_cluster_ends_as_if_it_was_not(tmp_path):
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "rows.jsonl")
    killed = tmp_path / "killed"

    def kill():
        # The second checkpoint is begun, so the first is whole.
        until(lambda: list(killed.glob("checkpoint-??")), 90)
        os.kill(int((killed / JOB_FILE).read_text()), signal.SIGKILL)

    lines = []
    with ray_jobs.cluster() as addresses:
        killer = threading.Thread(target=kill)
        killer.start()
        jobs = [training_job(tmp_path, name) for name in ("killed", "whole")]
        outcomes = run_queue(jobs, RayEngine(addresses.member), report=lines.append)
        killer.join()
    assert [outcome.status for outcome in outcomes.values()] == ["done", "done"], outcomes
    assert any("[1/2] killed: its process ended; started again on node" in line for line in lines)
    result, expected = read_result(killed), read_result(tmp_path / "whole")
    assert result["resumed_from"] is not None
    assert expected["resumed_from"] is None
    assert result["history"] == expected["history"]
    weights = "adapter/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_job_whose_process_always_dies_fails_alone(tmp_path):
    dying = Job("dying", ray_jobs.die, tmp_path / "dying", bool)
    folder = tmp_path / "one"
    other = Job("one", partial(ray_jobs.write, folder), folder, (folder / "result.json").is_file)
    with ray_jobs.cluster() as addresses:
        outcomes = run_queue([dying, other], RayEngine(addresses.member), report=print)
    assert outcomes["dying"].error == "its process died 4 times (WorkerCrashedError)"
    assert outcomes["one"].status == "done"
