"""The queue: order, failures, held jobs, what is printed, parts."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorada.cli.queue_options import check_queue
from lorada.compare.jobs.job import HeldError, Job
from lorada.compare.jobs.queue import run_queue, shard
from lorada.training.callbacks import DivergedError


class Made:
    """An engine with a clock of its own: jobs take made-up seconds, and end with made-up errors."""

    def __init__(self, slots=1, seconds=None, errors=None):
        self.slots, self.seconds, self.errors = slots, seconds or {}, errors or {}
        self.now, self.running, self.started, self.closed = 0.0, [], [], False

    def start(self, job, report):
        assert len(self.running) < self.slots
        self.started.append(job.name)
        self.running.append((self.now + self.seconds.get(job.name, 1), job.name))
        return job.name

    def wait(self):
        first = min(self.running)
        self.running.remove(first)
        self.now, name = first
        error = self.errors.get(name)
        return name, error.pop(0) if isinstance(error, list) and error else error or None

    def close(self):
        self.closed = True


def made(name, after=(), done=lambda: False):
    return Job(name, print, Path(name), done, tuple(after))


def statuses(outcomes):
    return {name: outcome.status for name, outcome in outcomes.items()}


def quiet(line):
    pass


def test_jobs_start_in_their_order_each_after_those_it_waits_for():
    engine = Made(slots=2)
    jobs = [made("a", "d"), made("b"), made("c", "b"), made("d"), made("e")]
    assert set(statuses(run_queue(jobs, engine, report=quiet)).values()) == {"done"}
    assert engine.started == ["b", "d", "c", "a", "e"]
    assert engine.closed


FAILURES = {
    "a mistake": (ValueError("one\nno such thing"), "no such thing"),
    "a diverged loss": (DivergedError("the loss is nan"), "the loss is nan"),
    "too little memory": (MemoryError("was killed"), "was killed"),
    "an error whose text says nothing": (KeyError("x"), "KeyError: 'x'"),
    "an error without a text": (ValueError(), "ValueError: "),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_leaves_waiting_what_waits_for_it_and_the_rest_goes_on(case):
    error, line = FAILURES[case]
    engine, said = Made(errors={"b": error}), []
    jobs = [made("a"), made("b"), made("c", "b"), made("d", "c"), made("e", "a")]
    outcomes = run_queue(jobs, engine, report=said.append)
    assert statuses(outcomes) == {
        "a": "done", "b": "failed", "c": "waiting", "d": "waiting", "e": "done",
    }  # fmt: skip
    assert outcomes["b"].error == line
    assert any(text.startswith(f"[2/5] b: failed: {line}") for text in said)
    assert engine.started == ["a", "b", "e"]


def test_a_finished_job_is_never_started_again():
    engine, said, looks = Made(), [], []

    def done_meanwhile():  # by another process, after the queue has begun
        looks.append(1)
        return len(looks) > 1

    jobs = [
        made("a", done=lambda: True), made("b", "a"), made("c", "x", lambda: True), made("x"),
        made("d", done=done_meanwhile), made("e", "d"),
    ]  # fmt: skip
    outcomes = run_queue(jobs, engine, report=said.append)
    assert engine.started == ["b", "x", "e"]
    assert [name for name, o in outcomes.items() if o.status == "kept"] == ["a", "c", "d"]
    assert said[0] == "2 of 6 jobs were done before"
    assert "[5/6] d: nothing left to do" in said


def test_a_held_job_is_tried_again_after_all_others_and_then_left():
    held = HeldError("held by process 7")
    engine = Made(errors={"a": [held], "b": [held, held]})
    jobs = [made("a"), made("b"), made("c", "a"), made("d", "b"), made("e")]
    outcomes = run_queue(jobs, engine, report=quiet)
    assert engine.started == ["a", "b", "e", "a", "b", "c"]
    assert statuses(outcomes) == {
        "a": "done", "b": "held", "c": "done", "d": "waiting", "e": "done",
    }  # fmt: skip
    assert outcomes["b"].error == "held by process 7"


def test_an_interrupt_ends_all():
    engine = Made(slots=2, errors={"a": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_queue([made("a"), made("b"), made("c")], engine, report=quiet)
    assert engine.started == ["a", "b"]
    assert engine.closed


def test_an_engine_that_cannot_start_a_job_fails_the_job_alone():
    class Weak(Made):
        def start(self, job, report):
            if job.name == "a":
                raise OSError("no more processes")
            return super().start(job, report)

    outcomes = run_queue([made("a"), made("b")], Weak(), report=quiet)
    assert outcomes["a"].error == "no more processes"
    assert outcomes["b"].status == "done"


def test_the_lines_say_how_much_is_done_and_how_long_the_rest_takes(monkeypatch):
    engine, said = Made(slots=2, seconds={"a": 600, "b": 900, "c": 80}), []
    monkeypatch.setattr(time, "monotonic", lambda: engine.now)
    run_queue([made(name) for name in "abc"], engine, report=said.append)
    assert said == [
        "[1/3] a: started",
        "[2/3] b: started",
        "[1/3] a: done in 10 min, about 5 min left",  # all of c, none of b, on two slots
        "[3/3] c: started",
        "[3/3] c: done in 80 s",  # nobody knows how much longer b takes
        "[2/3] b: done in 15 min",
    ]


@st.composite
def graphs(draw):
    """Jobs as name → names that it waits for, all earlier ones."""
    count = draw(st.integers(1, 9))
    names = [f"job{i}" for i in range(count)]
    return {
        name: draw(st.lists(st.sampled_from(names[:i]), unique=True, max_size=2)) if i else []
        for i, name in enumerate(names)
    }


@given(graphs(), st.integers(1, 5))
def test_parts_are_a_partition_and_keep_together_what_waits(after, n):
    jobs = [made(name, before) for name, before in after.items()]
    parts = [[job.name for job in shard(jobs, i, n)] for i in range(1, n + 1)]
    assert sorted(name for part in parts for name in part) == sorted(after)
    for part in parts:
        assert part == sorted(part)
        assert all(set(after[name]) <= set(part) for name in part)


def test_jobs_that_do_not_wait_are_dealt_evenly():
    jobs = [made(f"job{i}") for i in range(10)]
    assert [len(shard(jobs, i, 3)) for i in (1, 2, 3)] == [4, 3, 3]


REFUSED = {
    "part after the last": ((1, None, "3/2"), "--shard 3/2 must be i/n with i from 1 to n"),
    "part zero": ((1, None, "0/2"), "--shard 0/2 must be"),
    "no part": ((1, None, "x"), "--shard x must be"),
    "half a part": ((1, None, "1/"), "--shard 1/ must be"),
    "no worker": ((0, None, None), "--workers 0 must be at least 1"),
    "two places": ((2, "auto", None), "--workers and --cluster exclude each other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_ask_for_the_impossible_are_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        check_queue(*options)
