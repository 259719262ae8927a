"""The engine of a Ray cluster, on a cluster of this machine alone, whose jobs need no torch."""

import logging
import os
import socket
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `cluster`")

import ray_jobs

from lorada.experiments.queue import ray_connection, ray_node
from lorada.experiments.queue.collect import CALLER
from lorada.experiments.queue.job import Job
from lorada.experiments.queue.queue import run_queue
from lorada.experiments.queue.ray_cluster import RayEngine


@pytest.fixture(scope="module")
def cluster():
    with ray_jobs.cluster() as addresses:
        yield addresses


@pytest.fixture
def engine_of(cluster):
    """Makes engines, and closes those that the test leaves open."""
    made = []

    def make(kind=RayEngine, **options):
        made.append(kind(cluster[0], **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close(interrupt=False)


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


def test_jobs_run_and_their_lines_and_warnings_arrive(engine_of, tmp_path, caplog, capfd):
    failing = Job("failing", ray_jobs.fail, tmp_path / "failing", bool)
    with caplog.at_level(logging.WARNING):
        outcomes, lines = run(engine_of(), job(tmp_path / "one"), failing)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "one": "done", "failing": "failed",
    }  # fmt: skip
    assert outcomes["failing"].error == "last line"
    assert "[1/2] one: writing" in lines
    assert [record.getMessage() for record in caplog.records] == ["one: a warning"]
    assert not (tmp_path / "one" / CALLER).exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_is_interrupted_saves_before_the_engine_is_closed(engine_of, tmp_path):
    engine = engine_of()
    engine.start(job(tmp_path / "one", ray_jobs.wait_for_interrupt), print)
    deadline = time.monotonic() + 60
    while not (tmp_path / "one/started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    engine.close(interrupt=True)
    assert (tmp_path / "one/saved").exists()


@pytest.mark.slow
def test_a_job_that_wants_a_gpu_is_refused_at_once_where_no_node_has_one(engine_of, tmp_path):
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"can run one, which needs 1 CPU and 0\.5 GPU \(.* has 2 "
    ):
        run(engine_of(), job(tmp_path / "one", gpus=0.5))
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_node_with_other_versions_is_refused(engine_of, monkeypatch):
    other = only_here("versions", lambda found: {**found, "peft": "0.1"})
    monkeypatch.setattr(ray_node, "versions", other)
    with pytest.raises(ValueError, match=r"node .* has peft .*, and this command 0\.1: install"):
        engine_of()


@pytest.mark.slow
def test_a_folder_that_nodes_do_not_see_ends_the_command(engine_of, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_node, "sees", lambda path, text: False)
    with pytest.raises(ValueError, match=r"one is not shared with node .*--collect"):
        run(engine_of(), job(tmp_path / "one"), job(tmp_path / "two"))
    assert list((tmp_path / "one").iterdir()) == []


def on_node(path):
    return Path(str(path).replace("/here/", "/node/"))


class OtherDisk(RayEngine):
    """An engine for nodes with disks of their own: there, every path in ``here`` is in ``node``."""

    def _order(self, job):
        order, folder = super()._order(job), on_node(job.folder)
        reads = tuple(map(on_node, order.reads))
        work = partial(job.work.func, *map(on_node, job.work.args))
        moved = replace(job, folder=folder, work=work, done=bool)
        return replace(order, folder=folder, reads=reads, job=moved)

    def _content(self, path):
        return super()._content(Path(str(path).replace("/node/", "/here/")))


@pytest.mark.slow
def test_the_files_of_a_job_are_collected_from_another_disk(engine_of, tmp_path):
    folder = tmp_path / "here/one"
    outcomes, lines = run(engine_of(OtherDisk, collect=True), job(folder))
    assert outcomes["one"].status == "done"
    assert "[1/1] one: writing" in lines
    assert (folder / "adapter/weights").read_bytes() == bytes(range(256))
    assert sorted(os.listdir(folder)) == ["adapter", "result.json"]
    assert not on_node(folder).exists()


@pytest.mark.slow
def test_rows_and_what_is_in_the_folder_are_sent_to_another_disk(engine_of, tmp_path):
    rows, folder = tmp_path / "here/rows.jsonl", tmp_path / "here/one"
    folder.mkdir(parents=True)
    rows.write_text("rows")
    (folder / "before").write_text("before")
    copying = Job("one", partial(ray_jobs.copy, rows, folder), folder, bool, reads=(rows,))
    outcomes, _ = run(engine_of(OtherDisk, collect=True), copying)
    assert outcomes["one"].error == ""
    assert (folder / "copied").read_text() == "rows, before"


@pytest.mark.slow
def test_a_job_that_dies_on_another_disk_goes_on_from_its_checkpoint_there(engine_of, tmp_path):
    folder = tmp_path / "here/one"
    outcomes, lines = run(engine_of(OtherDisk, collect=True), job(folder, ray_jobs.die_once))
    assert outcomes["one"].error == ""
    assert any("one: its process ended; started again on node" in line for line in lines)
    assert (folder / "result.json").read_text() == "from checkpoint-1"
    assert os.listdir(folder) == ["result.json"]


@pytest.mark.slow
def test_collecting_from_a_node_that_shares_the_folder_copies_nothing(engine_of, tmp_path):
    outcomes, _ = run(engine_of(collect=True), job(tmp_path / "one"))
    assert outcomes["one"].status == "done"
    assert (tmp_path / "one/checkpoint-4/weights").is_file()
    assert not (tmp_path / "one" / CALLER).exists()


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


def test_an_error_of_ray_in_many_lines_is_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionAbortedError("it failed\nTraceback\n\n")

    monkeypatch.setattr(ray_connection, "TRY", "")
    monkeypatch.setattr(ray_connection.ray, "init", fail)
    with pytest.raises(ConnectionError, match=r"^no Ray cluster at auto \(it failed\): start one"):
        RayEngine("auto")


def test_without_a_cluster_auto_is_one_line(monkeypatch):
    monkeypatch.setattr(ray_connection, "TRY", "raise SystemExit('Could not find any Ray')")
    with pytest.raises(ConnectionError, match=r"at auto \(Could not find any Ray\): start one by"):
        RayEngine("auto")


@pytest.mark.slow
def test_a_job_gets_a_gpu_where_the_cluster_has_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ray_jobs.cluster(gpus=1) as addresses:
        engine = RayEngine(addresses.member)
        assert engine.slots == 1
        run(engine, job(tmp_path / "one", ray_jobs.write_gpus))
    assert (tmp_path / "one" / "gpus").read_text() == "0"
