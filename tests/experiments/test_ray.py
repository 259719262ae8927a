"""The engine of a Ray cluster, on a cluster of this machine alone, whose jobs need no torch."""

import logging
import os
import socket
import time
from dataclasses import replace
from functools import partial

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


def test_what_is_interrupted_saves_before_the_engine_is_closed(engine_of, tmp_path):
    engine = engine_of()
    engine.start(job(tmp_path / "one", ray_jobs.wait_for_interrupt), print)
    deadline = time.monotonic() + 60
    while not (tmp_path / "one/started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    engine.close(interrupt=True)
    assert (tmp_path / "one/saved").exists()


def test_a_job_that_wants_a_gpu_is_refused_at_once_where_no_node_has_one(engine_of, tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"can run one, which needs 1 CPU and 0\.5 GPU \(.* has 2 "):
        run(engine_of(), job(tmp_path / "one", gpus=0.5))
    assert time.monotonic() - began < 20


def test_a_node_with_other_versions_is_refused(engine_of, monkeypatch):
    other = only_here("versions", lambda found: {**found, "peft": "0.1"})
    monkeypatch.setattr(ray_node, "versions", other)
    with pytest.raises(ValueError, match=r"node .* has peft .*, and this command 0\.1: install"):
        engine_of()


def test_a_folder_that_nodes_do_not_see_ends_the_command(engine_of, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_node, "sees", lambda path, text: False)
    with pytest.raises(ValueError, match=r"one is not shared with node .*--collect"):
        run(engine_of(), job(tmp_path / "one"), job(tmp_path / "two"))
    assert list((tmp_path / "one").iterdir()) == []


class OtherDisk(RayEngine):
    """An engine whose nodes have other disks: each path is another one there."""

    def _order(self, job):
        order = super()._order(job)
        there = order.folder.parents[1] / "node" / order.folder.name
        reads = tuple(order.folder.parents[1] / "node" / path.name for path in order.reads)
        arguments = [*reads, there]
        changed = replace(job, folder=there, work=partial(job.work.func, *arguments),
                          done=(there / "result.json").is_file)  # fmt: skip
        self.contents = [*map(self._content, order.reads)]
        return replace(order, folder=there, job=changed, reads=reads)
