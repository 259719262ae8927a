"""Jobs on a Ray cluster of this machine alone."""

import os
import signal
import socket
import threading
import time
from functools import partial
from unittest.mock import Mock

import pytest

pytest.importorskip("ray", reason="needs the extra `cluster`")

import ray_jobs
from folders import llama_folder, rows_file
from programs import until
from trained_runs import run_recipe

from lorada.compare.jobs import ray_pool
from lorada.compare.jobs.job import JOB_FILE, Job, progress_of
from lorada.compare.jobs.queue import run_queue
from lorada.compare.jobs.ray_pool import RayPool
from lorada.runs.result import read_result


@pytest.fixture(scope="module")
def cluster():
    with ray_jobs.cluster(gpus=1) as addresses:
        yield addresses


@pytest.fixture
def pool_of(cluster):
    """Makes pools, and closes those that the test leaves open."""
    made = []

    def make(gpus_per_job=1.0):
        made.append(RayPool(cluster.member, gpus_per_job))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def job(folder, work=ray_jobs.write, **settings):
    return Job(folder.name, partial(work, folder), folder, (folder / "result.json").is_file,
               **settings)  # fmt: skip


@pytest.mark.more
def test_jobs_run_fail_and_report_and_a_part_of_a_gpu_is_shared(pool_of, tmp_path, capfd):
    pool = pool_of(0.5)
    assert pool.slots == 2
    failing, one = job(tmp_path / "failing", ray_jobs.fail), job(tmp_path / "one")
    outcomes = run_queue([one, failing], pool, report=lambda line: None)
    assert outcomes["one"].status == "done"
    assert (outcomes["failing"].status, outcomes["failing"].error) == ("failed", "last line")
    assert progress_of(one).line == "writing"
    assert (tmp_path / "one" / "gpus").read_text() == "0"
    assert capfd.readouterr() == ("", "")
    pool.close()
    with pytest.raises(ValueError, match="has no room for 1 CPU and 2 GPUs"):
        pool_of(2)


@pytest.mark.slow
def test_what_is_interrupted_saves_before_the_pool_is_closed(pool_of, tmp_path, monkeypatch):
    started = tmp_path / "one/started"

    def interrupt(*tasks, **options):  # while the command waits, as Ctrl-C does
        until(started.exists, 60)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_pool.ray, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_queue([job(tmp_path / "one", ray_jobs.wait_for_interrupt)], pool_of(), report=print)
    assert (tmp_path / "one/saved").exists()


@pytest.mark.slow
def test_a_node_that_cannot_run_jobs_ends_the_command(pool_of, tmp_path, monkeypatch):
    real = ray_pool.versions()
    monkeypatch.setattr(ray_pool, "versions", lambda: {**real, "peft": "0.1"})
    with pytest.raises(ValueError, match=r"node .* has peft .*, and this command 0\.1: install"):
        run_queue([job(tmp_path / "one")], pool_of(), report=print)
    monkeypatch.undo()
    lacking = job(tmp_path / "two", reads=(tmp_path / "model",))
    with pytest.raises(ValueError, match=f"has no {tmp_path / 'model'}: put it on a path that all"):
        run_queue([lacking, job(tmp_path / "three")], pool_of(), report=print)


def test_a_node_that_lacks_a_path_of_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "FOUND_WITHIN", 0.1)
    here = ray_pool.versions()
    assert ray_pool.why_refused(here, [tmp_path]) is None
    wrong = ray_pool.why_refused(here, [tmp_path, tmp_path / "elsewhere"])
    assert f"has no {tmp_path / 'elsewhere'}: put it on a path that all nodes share" in wrong


def test_a_cluster_that_cannot_be_reached_is_one_line():
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no Ray cluster at 127.* refused\): start one by"):
        RayPool(f"127.0.0.1:{ray_jobs.free_port()}")
    with pytest.raises(ConnectionError, match="no Ray cluster at ray://no-such-host"):
        RayPool("ray://no-such-host.invalid:10001")
    assert time.monotonic() - began < 20
    for address in ("gpu-box", "ray:/host:1", "host:port"):
        with pytest.raises(ValueError, match=f"--cluster '{address}' is not auto, HOST:PORT or"):
            RayPool(address)


@pytest.mark.more
def test_another_service_at_the_address_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(ray_pool, "CONNECT_WITHIN", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = f"127.0.0.1:{service.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no answer within 2 s\): start one by"):
            RayPool(address)


@pytest.mark.parametrize(
    ("tried", "said"),
    [("raise SystemExit('Could not find any Ray')", "Could not find any Ray"), ("", "it failed")],
)
def test_without_a_cluster_auto_is_one_line(tried, said, monkeypatch):
    fails = Mock(side_effect=ConnectionAbortedError("it failed\nTraceback\n\n"))
    monkeypatch.setattr(ray_pool, "TRY_TO_CONNECT", tried)
    monkeypatch.setattr(ray_pool.ray, "init", fails)
    with pytest.raises(ConnectionError, match=rf"^no Ray cluster at auto \({said}\): start one by"):
        RayPool("auto")


@pytest.mark.slow
def test_a_machine_outside_of_the_cluster_runs_jobs_on_it(cluster, tmp_path):
    for _ in range(20):
        try:
            pool = RayPool(cluster.client)
            break
        except ConnectionError:  # Ray refuses some in its first seconds
            time.sleep(2)
    assert run_queue([job(tmp_path / "one")], pool, report=print)["one"].status == "done"


STEPS = ["max_steps=100", "save_steps=5", "logging_steps=1", "report_to=[]", "max_length=32"]


@pytest.mark.slow
def test_a_training_that_is_killed_on_a_cluster_ends_as_if_it_was_not(pool_of, tmp_path):
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "rows.jsonl")
    killed = tmp_path / "killed"

    def kill():
        # The second checkpoint is begun, so the first is whole.
        until(lambda: list(killed.glob("checkpoint-??")), 90)
        os.kill(int((killed / JOB_FILE).read_text()), signal.SIGKILL)

    jobs = []
    for name in ("killed", "whole"):
        recipe = run_recipe(STEPS, tmp_path, tmp_path / name, rows="rows", method="lorada_la")
        jobs.append(replace_work(job(tmp_path / name), partial(ray_jobs.train_run, recipe)))
    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = run_queue(jobs, pool_of(), report=print)
    killer.join()
    assert [outcome.status for outcome in outcomes.values()] == ["done", "done"], outcomes
    result, expected = read_result(killed), read_result(tmp_path / "whole")
    assert result.resumed_from is not None
    assert expected.resumed_from is None
    assert result.history == expected.history
    weights = "adapter/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def replace_work(one, work):
    return Job(one.name, work, one.folder, one.done)


@pytest.mark.slow
def test_a_job_whose_process_always_dies_fails_alone(pool_of, tmp_path):
    dying, other = job(tmp_path / "dying", ray_jobs.die), job(tmp_path / "one")
    outcomes = run_queue([dying, other], pool_of(), report=print)
    assert outcomes["dying"].error == "its process died 4 times (WorkerCrashedError)"
    assert (tmp_path / "dying" / "deaths").read_text() == "died\n" * 4
    assert outcomes["one"].status == "done"
