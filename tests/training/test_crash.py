"""`kill -9` at any moment: at most one save interval is lost, and nothing half-written loads."""

import errno
import os
import random
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from lorada.runs.folder import locked
from lorada.support.files import SCRATCH, scratch_folder, write_atomic

CHANCE = random.Random(int(os.environ.get("LORADA_TEST_SEED", "0")))
# The first write that the end may come at, whether it comes in the middle of the first large file
# from there on, and settings. Adapter, optimizer and random states have more bytes than the limit.
MOMENTS = {
    "half the weights of the last checkpoint": ("checkpoint-4/README", True),
    "half an optimizer": ("checkpoint-4/adapter_config", True),
    "no state of the last checkpoint": ("checkpoint-4/trainer_state", False),
    "half of an older checkpoint removed": ("remove checkpoint-2/(optimizer|adapter_m)", False),
    "half the final adapter": ("mkdir .*/adapter", True),
    "an adapter but no result": ("open .*result.json", False),
    "between two log lines": ("mkdir checkpoint-4", False, "logging_steps=3"),
    "at a random write": (CHANCE.randint(1, 45), False),  # of some fifty
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_write_loses_at_most_one_save_interval(lab, tmp_path, moment):
    (at, half, *own), run = MOMENTS[moment], tmp_path / "run"
    reply = lab.train(run, *own, at=at, **({"limit": 6000} if half else {}))
    assert reply["code"] == -(signal.SIGXFSZ if half else signal.SIGKILL), reply["said"]
    lab.check(run, reply["steps"], *own)


@pytest.mark.more
def test_a_kill_while_an_earlier_run_is_removed_leaves_no_mixture(lab, tmp_path):
    """``--overwrite`` with another seed: the recipe that is left is that of the earlier run."""
    again, run = ("training.seed=7", "--overwrite"), tmp_path / "run"
    assert lab.train(run)["code"] == 0
    reply = lab.train(run, *again, at="rename rows.sha256")
    assert reply["code"] == -signal.SIGKILL, reply["said"]
    assert not (run / "result.json").exists()
    lab.check(run, 0)
    assert lab.train(run, *again)["code"] == 0
    lab.check(run, 4, again[0])


HOLDS = """
import os, signal, sys, time
from pathlib import Path
from lorada.runs.folder import locked
with locked(Path(sys.argv[1])):
    if os.fork():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(9)  # as a worker of a data loader
"""


def test_a_killed_process_leaves_its_lock_to_none_that_it_forked(tmp_path):
    words = [sys.executable, "-c", HOLDS, tmp_path / "run"]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
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
