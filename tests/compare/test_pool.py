"""Jobs in real processes: killed, interrupted, held; and which cards each of them sees."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
import queue_jobs as work
from paths import HELPERS
from programs import printed, until
from queue_jobs import job

from lorada.compare.jobs.job import JOB_FILE
from lorada.compare.jobs.pool import Workers, cards_of_slots
from lorada.compare.jobs.queue import run_queue
from lorada.runs.folder import LOCK_FILE, LOG_FILE, HeldError, locked
from lorada.support.processes import GPU_SHARE

ENGINES = {"one at a time": Workers, "two workers": partial(Workers, 2)}


@pytest.fixture(autouse=True)
def processes_find_the_work(monkeypatch):
    path = os.pathsep.join(map(str, [HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def statuses(outcomes):
    return [outcome.status for outcome in outcomes.values()]


@pytest.mark.parametrize("engine", ENGINES)
def test_jobs_fail_or_are_killed_each_for_itself_and_go_on_the_next_time(engine, tmp_path):
    jobs = [
        job(tmp_path, "a"), job(tmp_path, "bad", work.fail), job(tmp_path, "c", after="bad"),
        job(tmp_path, "killed", work.kill_at_first), job(tmp_path, "e", after="a"),
    ]  # fmt: skip
    said = []
    outcomes = run_queue(jobs, ENGINES[engine](), report=said.append)
    assert statuses(outcomes) == ["done", "failed", "waiting", "failed", "done"]
    assert outcomes["bad"].error == "bad"
    assert "was killed" in outcomes["killed"].error
    assert (tmp_path / "a" / LOG_FILE).read_text() == "> writing\n"
    log = (tmp_path / "bad" / LOG_FILE).read_text()
    assert "Traceback" in log
    assert log.endswith("ValueError: a first line\nbad\n")
    before = (tmp_path / "a" / "written").read_text()
    outcomes = run_queue(jobs, ENGINES[engine](), report=said.append)
    assert statuses(outcomes) == ["kept", "failed", "waiting", "done", "kept"]
    assert (tmp_path / "a" / "written").read_text() == before
    assert not list(tmp_path.rglob(JOB_FILE))


def test_a_job_that_another_signal_ends_is_said_to_be_ended_by_it(tmp_path):
    jobs = [job(tmp_path, "ended", work.end_by_sigterm)]
    outcomes = run_queue(jobs, Workers(), report=print)
    assert "was ended by signal 15" in outcomes["ended"].error


CARDS = {
    "none": ("", 1, [""]),
    "one a card": ("0,1", 1, ["0", "1"]),
    "those that are given": ("5,3", 1, ["5", "3"]),
    "two on each": ("2,4", 0.5, ["2", "4"] * 2),
    "two each, and one is left": ("0,1,2,3,4", 2, ["0,1", "2,3"]),
}


@pytest.mark.parametrize("case", CARDS)
def test_each_job_sees_its_own_cards_and_auto_runs_one_on_each(case, tmp_path, monkeypatch):
    visible, each, expected = CARDS[case]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = Workers(None, each)
    assert pool.slots == len(expected)
    last = tmp_path / f"job{len(expected) - 1}" / "begun"  # all run at once
    jobs = [job(tmp_path, f"job{n}", partial(work.wait_for, last)) for n in range(len(expected))]
    run_queue([*jobs, job(tmp_path, "last", after="job0")], pool, report=print)
    for file in ("cards", "cards_at_import") if visible else ("cards",):
        assert [(tmp_path / one.name / file).read_text() for one in jobs] == expected
    share = "1" if each >= 1 else f"{each:g}"
    assert {(tmp_path / one.name / "share").read_text() for one in jobs} == {share}
    assert (tmp_path / "last" / "cards").read_text() in expected


# A process on a machine with two cards, in which nothing may look at them before a job does: a
# process that has looked cannot be forked.
LOOKS = """
import torch
from importlib import import_module
from lorada.compare.jobs.pool import Workers
looks = []
torch._C._cuda_getDeviceCount = lambda: looks.append("count") or 2
torch.cuda._lazy_init = lambda: looks.append("init")
for name in Workers(None).preloaded:
    import_module(name)
print(looks)
"""


def test_no_card_is_looked_at_before_a_job_has_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert printed(sys.executable, "-c", LOOKS) == "[]\n"


def test_jobs_that_share_a_card_plan_with_a_part_of_its_memory(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    shares = {
        (count, each): Workers(count, each)._environment_of(0)[GPU_SHARE]
        for count, each in ((None, 1.0), (4, 1.0), (1, 0.25), (None, 0.5), (3, 1.0), (1, 2.0))
    }
    assert [*shares.values()] == ["1.0", "0.5", "0.25", "0.5", "0.5", "1.0"]


def test_more_workers_than_cards_share_them_and_too_few_cards_are_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert Workers(4).slots == 4
    with pytest.raises(ValueError, match="--gpus-per-job 4 needs 4 GPUs, and there are 2"):
        Workers(None, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert Workers(None).slots == 8
    assert cards_of_slots([], 2) == []
    assert cards_of_slots(["2", "4"], 0.25) == [["2"], ["4"]] * 4


def test_workers_run_at_once_and_share_the_cores(tmp_path):
    jobs = [
        job(tmp_path, "a", partial(work.wait_for, tmp_path / "b" / "written")),
        job(tmp_path, "b"),
    ]
    assert statuses(run_queue(jobs, Workers(2), report=print)) == ["done", "done"]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (tmp_path / "a" / "written").read_text() == f"a {threads}\n"


def test_the_peak_memory_of_a_job_does_not_carry_that_of_one_before_it(tmp_path):
    jobs = [job(tmp_path, name, partial(work.keep_peak, size))
            for name, size in (("large", 300), ("small", 0))]  # fmt: skip
    run_queue(jobs, Workers(), report=print)
    large, small = (int((tmp_path / one.name / "peak").read_text()) for one in jobs)
    assert large > small + 250 * 2**20


def test_where_no_process_is_bound_to_cores_all_are_shared(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert Workers(2).slots == 2


def test_the_threads_that_the_user_sets_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_queue([job(tmp_path, "a")], Workers(2), report=print)
    assert (tmp_path / "a" / "written").read_text() == "a 7\n"


def test_a_job_that_another_process_holds_is_held_until_that_process_ends(tmp_path):
    free = tmp_path / "free"
    mine = [job(tmp_path, "a", partial(work.wait_for, free)), job(tmp_path, "b")]
    found = {}

    def other_queue():
        found.update(run_queue(mine[:1], Workers(), report=print))

    other = threading.Thread(target=other_queue)
    other.start()
    work.started(tmp_path, "a")
    outcomes = run_queue(mine, Workers(), report=print)
    assert statuses(outcomes) == ["held", "done"]
    owner = (tmp_path / "a" / JOB_FILE).read_text()
    assert outcomes["a"].error.startswith(f"{tmp_path / 'a'} is being trained by process {owner}:")
    free.touch()
    other.join()
    assert statuses(found) == ["done"]
    assert statuses(run_queue(mine, Workers(), report=print)) == ["kept", "kept"]
    assert (tmp_path / "a" / "written").read_text().count("a") == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_trained_without_a_queue_is_held_too(engine, tmp_path):
    train = job(tmp_path, "a", work.lock_as_training)
    with locked(tmp_path / "a"):
        outcomes = run_queue([train], ENGINES[engine](), report=print)
        assert (tmp_path / "a" / LOCK_FILE).is_file()
    assert statuses(outcomes) == ["held"]
    assert statuses(run_queue([train], ENGINES[engine](), report=print)) == ["done"]


def test_the_two_locks_of_a_folder_are_kept_apart(tmp_path):
    with locked(tmp_path), locked(tmp_path, JOB_FILE):
        code = f"""
from pathlib import Path
from lorada.runs.folder import HeldError, locked
for name in ({LOCK_FILE!r}, {JOB_FILE!r}):
    try:
        with locked(Path({str(tmp_path)!r}), name):
            print("free")
    except HeldError:
        print("held")
"""
        assert printed(sys.executable, "-c", code).split() == ["held", "held"]
    assert issubclass(HeldError, ValueError)


# A command with some workers, as the command line has them.
COMMAND = """
import queue_jobs, sys
from pathlib import Path
from lorada.compare.jobs import pool
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import run_queue
pool.IMPORTED = []  # the work needs none of it
if __name__ == "__main__":
    try:
        work = getattr(queue_jobs, sys.argv[2])
        jobs = [queue_jobs.job(Path(sys.argv[1]), name, work) for name in "abc"]
        run_queue(jobs, Workers(int(sys.argv[3])), report=print)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def command(place, kind="save_on_interrupt", workers=2):
    words = [str(place), kind, str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], stderr=subprocess.PIPE, text=True
    )


# Work, its workers, and which of three jobs leave a file, or their folder.
INTERRUPTED = {
    "saves": ("save_on_interrupt", 2, "saved", [True, True, False]),
    "ends in its last moment": ("finish_on_interrupt", 1, "", [True, False, False]),
}


@pytest.mark.more
@pytest.mark.parametrize("case", INTERRUPTED)
def test_ctrl_c_lets_all_workers_save_or_end_and_ends_the_command(case, tmp_path):
    kind, workers, file, left = INTERRUPTED[case]
    process = command(tmp_path, kind, workers)
    work.started(tmp_path, *"ab"[:workers])
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert [(tmp_path / name / file).exists() for name in "abc"] == left
    assert not list(tmp_path.rglob(JOB_FILE))


@pytest.mark.more
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_ends_what_still_saves(workers, tmp_path):
    process = command(tmp_path, "save_for_long", workers)
    names = "ab"[:workers]
    work.started(tmp_path, *names)
    process.send_signal(signal.SIGINT)
    work.started(tmp_path, *names, file="saving")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not list(tmp_path.rglob(JOB_FILE))


def is_free(folder):
    """Whether a job may start there: a killed process can hold its lock a moment longer."""
    try:
        with locked(folder, JOB_FILE):
            return True
    except HeldError:
        return False


@pytest.mark.more
@pytest.mark.parametrize(
    "ends_by", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_workers_of_a_command_that_is_killed_end_with_it(ends_by, tmp_path):
    process = command(tmp_path)
    work.started(tmp_path, "a", "b")
    numbers = [int((tmp_path / name / JOB_FILE).read_text()) for name in "ab"]
    process.send_signal(ends_by)
    process.communicate(timeout=60)
    until(lambda: all(map(work.is_gone, numbers)), 10)
    until(lambda: is_free(tmp_path / "a"))
