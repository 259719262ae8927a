"""The engine of a Ray cluster, on a cluster of this machine alone, whose jobs need no torch."""

import os
import socket
import time
from functools import partial
from unittest.mock import Mock

import pytest

pytest.importorskip("ray", reason="needs the extra `cluster`")

import ray_jobs
from programs import until

from lorada.compare.jobs import ray_cluster, ray_connection, ray_node
from lorada.compare.jobs.job import Job
from lorada.compare.jobs.queue import run_queue
from lorada.compare.jobs.ray_cluster import RayEngine


@pytest.fixture(scope="module")
def cluster():
    with ray_jobs.cluster() as addresses:
        yield addresses


@pytest.fixture
def engine_of(cluster):
    """Makes engines, and closes those that the test leaves open."""
    made = []

    def make():
        made.append(RayEngine(cluster.member))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def job(folder, work=ray_jobs.write, **settings):
    return Job(folder.name, partial(work, folder), folder, (folder / "result.json").is_file,
               **settings)  # fmt: skip


def run(engine, *jobs):
    """Run jobs as a command does; what became of each, and the lines that were reported."""
    lines = []
    return run_queue(jobs, engine, report=lines.append), lines


def only_here(name, change):
    """A function of ``ray_node`` that differs in this process, but not on the nodes."""
    real, here = getattr(ray_node, name), os.getpid()

    def function(*arguments):
        found = real(*arguments)
        return change(found) if os.getpid() == here else found

    return function


def test_jobs_run_and_their_lines_and_warnings_arrive(engine_of, tmp_path, capfd):
    failing = Job("failing", ray_jobs.fail, tmp_path / "failing", bool)
    outcomes, lines = run(engine_of(), job(tmp_path / "one"), failing)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "one": "done", "failing": "failed",
    }  # fmt: skip
    assert outcomes["failing"].error == "last line"
    assert {"[1/2] one: writing", "[1/2] one: warning: a warning"} <= set(lines)
    assert not list(tmp_path.rglob(f"{ray_cluster.PROBE}*"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_is_interrupted_saves_before_the_engine_is_closed(engine_of, tmp_path, monkeypatch):
    started = tmp_path / "one/started"

    def interrupt(*tasks, **options):  # while the command waits, as Ctrl-C does
        until(started.exists, 60)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_cluster.ray, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(engine_of(), job(tmp_path / "one", ray_jobs.wait_for_interrupt))
    assert (tmp_path / "one/saved").exists()


@pytest.mark.slow
def test_a_cluster_without_processors_is_refused(engine_of, monkeypatch):
    monkeypatch.setattr(ray_cluster, "nodes", list)
    with pytest.raises(ValueError, match="has no CPU: add a node with one"):
        engine_of()


@pytest.mark.slow
def test_a_node_with_other_versions_ends_the_command(engine_of, tmp_path, monkeypatch):
    other = only_here("versions", lambda found: {**found, "peft": "0.1"})
    monkeypatch.setattr(ray_node, "versions", other)
    with pytest.raises(ValueError, match=r"node .* has peft .*, and this command 0\.1: install"):
        run(engine_of(), job(tmp_path / "one"))


def test_a_folder_that_nodes_do_not_see_ends_the_command(engine_of, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_node, "sees", lambda path: False)
    wrong = rf"node .* does not see {tmp_path / 'one'} of this command: choose an --output on a"
    with pytest.raises(ValueError, match=wrong):
        run(engine_of(), job(tmp_path / "one"), job(tmp_path / "two"))
    assert list((tmp_path / "one").iterdir()) == []


def test_a_node_finds_a_file_that_is_there_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_node, "FOUND_WITHIN", 0.1)
    (tmp_path / "there").touch()
    assert [ray_node.sees(str(tmp_path / name)) for name in ("there", "elsewhere")] == [True, False]


@pytest.mark.slow
def test_a_node_that_joins_late_and_shares_no_folder_runs_no_job(engine_of, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "on_nodes", lambda *arguments: [])  # it was not there yet
    monkeypatch.setattr(ray_node, "sees", lambda path: False)
    outcomes, _ = run(engine_of(), job(tmp_path / "one"))
    assert f"does not see {tmp_path / 'one'}" in outcomes["one"].error


@pytest.mark.slow
def test_a_path_that_a_node_lacks_is_named(engine_of, tmp_path):
    outcomes, _ = run(engine_of(), job(tmp_path / "one", reads=(tmp_path / "model",)))
    assert f"has no {tmp_path / 'model'}: put it on a path that all" in outcomes["one"].error


def test_a_cluster_that_cannot_be_reached_is_one_line():
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no Ray cluster at 127.* refused\): start one by"):
        RayEngine(f"127.0.0.1:{ray_jobs.free_port()}")
    with pytest.raises(ConnectionError, match="no Ray cluster at ray://no-such-host"):
        RayEngine("ray://no-such-host.invalid:10001")
    assert time.monotonic() - began < 20
    for address in ("gpu-box", "ray:/host:1", "host:port"):
        with pytest.raises(ValueError, match=f"--cluster '{address}' is not auto, HOST:PORT or"):
            RayEngine(address)


def test_another_service_at_the_address_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(ray_connection, "CONNECT_WITHIN", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = f"127.0.0.1:{service.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no answer within 2 s\): start one by"):
            RayEngine(address)


@pytest.mark.parametrize(
    ("tried", "said"),
    [("raise SystemExit('Could not find any Ray')", "Could not find any Ray"), ("", "it failed")],
)
def test_without_a_cluster_auto_is_one_line(tried, said, monkeypatch):
    fails = Mock(side_effect=ConnectionAbortedError("it failed\nTraceback\n\n"))
    monkeypatch.setattr(ray_connection, "TRY", tried)
    monkeypatch.setattr(ray_connection.ray, "init", fails)
    with pytest.raises(ConnectionError, match=rf"^no Ray cluster at auto \({said}\): start one by"):
        RayEngine("auto")


@pytest.mark.slow
def test_a_machine_outside_of_the_cluster_runs_jobs_on_it(cluster, tmp_path):
    for _ in range(20):
        try:
            engine = RayEngine(cluster.client)
            break
        except ConnectionError:  # Ray refuses some in its first seconds
            time.sleep(2)
    outcomes, lines = run(engine, job(tmp_path / "one"))
    assert outcomes["one"].status == "done"
    assert "[1/1] one: writing" in lines


@pytest.mark.slow
def test_a_job_gets_a_gpu_where_the_cluster_has_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ray_jobs.cluster(gpus=1) as addresses:
        engine = RayEngine(addresses.member)
        assert engine.slots == 1
        run(engine, job(tmp_path / "one", ray_jobs.write_gpus))
    assert (tmp_path / "one" / "gpus").read_text() == "0"
