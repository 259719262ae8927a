"""`kill -9` at any moment: at most one save interval is lost, and nothing half-written loads."""

import errno
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
import yaml
from crashes import (
    KEEP_ALL,
    check_result,
    check_the_end,
    check_what_is_left,
    number,
    random_numbers,
)

from lorada.runs.folder import LOCK_FILE, locked, run_files
from lorada.support.files import SCRATCH, scratch_folder, write_atomic

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
AGAIN = "training.seed=7"


QUICK = {
    "half the weights of the last checkpoint": ("safetensors checkpoint-4", "kill half"),
    "an optimizer of no bytes": ("torch.save checkpoint-4/optimizer", "kill empty"),
    "half of an older checkpoint removed": ("remove checkpoint-2/(optimizer|adapter_m)", "kill"),
    "half the state of the last checkpoint": ("open checkpoint-4/trainer_state", "kill half"),
    "half the final adapter": ("safetensors .*adapter/", "kill half"),
    "an adapter but no result": ("open .*result.json", "kill"),
}


@pytest.mark.parametrize("case", QUICK)
def test_a_run_killed_at_a_write_loses_at_most_one_save_interval(lab, tmp_path, case):
    (pattern, how), run, whole = QUICK[case], tmp_path / "run", lab.whole()
    reply = lab.train(run, at=number(lab.points, pattern), how=how)
    assert reply["code"] in KILLED, reply["said"]
    check_what_is_left(lab, run, whole, reply["steps"])
    check_the_end(lab, run, whole)


def test_a_run_killed_at_a_random_moment_loses_at_most_one_save_interval(lab, tmp_path):
    chance, whole, run = random_numbers(), lab.whole(), tmp_path / "run"
    slow = {"slow": 0.005}
    seconds, code = lab.train(tmp_path / "timed", **slow)["seconds"], 0
    while code != -signal.SIGKILL:  # else it was faster than the kill
        shutil.rmtree(run, ignore_errors=True)
        reply = lab.train(run, after=chance.uniform(0.2, seconds), **slow)
        code = reply["code"]
    check_what_is_left(lab, run, whole, reply["steps"])
    check_the_end(lab, run, whole)


@pytest.mark.slow
def test_log_lines_are_the_same_if_a_run_resumes_between_two(lab, tmp_path):
    uneven = ("logging_steps=3",)
    run, whole = tmp_path / "run", lab.whole(*uneven)
    after = number(lab.train(tmp_path / "points", *uneven)["points"], "mkdir checkpoint-4")
    assert lab.train(run, *uneven, at=after)["code"] == -signal.SIGKILL
    check_the_end(lab, run, whole, *uneven)


def test_the_best_weights_are_the_final_ones_after_a_kill_too(lab, tmp_path):
    best = (
        f"eval_data={lab.rows}", "eval_strategy=steps", "eval_steps=2",
        "load_best_model_at_end=true", "metric_for_best_model=eval_loss",
        "greater_is_better=true",  # here the worse ones, which are not the last ones
    )  # fmt: skip
    run, whole = tmp_path / "run", lab.whole(*best)
    last = (whole / "checkpoint-4" / "adapter_model.safetensors").read_bytes()
    assert (whole / "adapter" / "adapter_model.safetensors").read_bytes() != last
    points = lab.train(tmp_path / "points", *best, KEEP_ALL)["points"]
    killed = lab.train(run, *best, KEEP_ALL, at=number(points, "open .*result.json"))
    assert killed["code"] == -signal.SIGKILL
    check_the_end(lab, run, whole, *best, KEEP_ALL)


def test_a_kill_while_an_earlier_run_is_removed_leaves_no_mixture(lab, tmp_path):
    """``--overwrite`` with another seed is killed; whatever is left resumes as what it is."""
    first, second, run = lab.whole(), lab.whole(AGAIN), tmp_path / "run"
    assert lab.train(run)["code"] == 0
    overwritten = shutil.copytree(run, tmp_path / "overwritten")
    points = lab.train(overwritten, AGAIN, "--overwrite")["points"]
    reply = lab.train(run, AGAIN, "--overwrite", at=number(points, "rename rows.sha256"))
    assert reply["code"] == -signal.SIGKILL, reply["said"]
    recipe = run / "recipe.yaml"
    if (run / "result.json").exists():
        check_result(run, first)
    elif recipe.exists():
        seed = yaml.safe_load(recipe.read_text())["training"].get("seed")
        expected = first if seed is None else second
        check_what_is_left(lab, run, expected, 0)
        resumed = lab.command(["train", "--resume", "--output", str(run)], run)
        assert resumed["code"] == 0, resumed["said"]
        check_result(run, expected)
    else:
        assert run_files(run) == []
    again = lab.train(run, AGAIN, "--overwrite")
    assert again["code"] == 0, again["said"]
    check_result(run, second)


def test_a_second_training_in_the_same_folder_is_refused(lab, tmp_path):
    run = tmp_path / "run"
    with locked(run):
        reply = lab.train(run)
        owner = (run / LOCK_FILE).read_text()
    assert reply["code"] == 2
    line = reply["said"].strip().splitlines()[-1]
    assert line.startswith(f"error: {run} is being trained by process {owner}: ")
    assert not run.exists()


HOLDS = """
import os, signal, sys, time
from pathlib import Path
from lorada.runs.folder import locked
with locked(Path(sys.argv[1])):
    told, tells = os.pipe()
    if os.fork() == 0:  # as a worker of a data loader
        os.write(tells, b".")
        time.sleep(9)
        os._exit(0)
    os.read(told, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_lock_to_none_that_it_forked(tmp_path):
    words = [sys.executable, "-c", HOLDS, tmp_path / "run"]
    assert subprocess.Popen(words).wait() == -signal.SIGKILL
    with locked(tmp_path / "run"):
        pass


def test_where_there_are_no_locks_a_training_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    with locked(tmp_path / "run"):
        assert "is on a file system without locks" in caplog.text


def test_scratch_of_the_dead_is_removed_and_of_the_living_is_not(tmp_path):
    orphan = tmp_path / f"{SCRATCH}orphan"
    (orphan / "adapter").mkdir(parents=True)
    with scratch_folder(tmp_path) as living:
        assert not orphan.exists()
        write_atomic(tmp_path / "a.txt", "a")
        assert living.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
