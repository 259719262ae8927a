"""The queue: order, failures, held jobs, what is printed."""

import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lorada.compare.jobs import queue
from lorada.compare.jobs.job import Job, Outcome, Progress, carry_out, last_line, progress_of
from lorada.compare.jobs.queue import run_queue
from lorada.support.in_words import duration
from lorada.training.callbacks import DivergedError


class Made:
    """An engine with a clock of its own: jobs take made-up seconds, and end with made-up errors."""

    def __init__(self, slots=1, seconds=None, errors=None):
        self.slots, self.seconds, self.errors = slots, seconds or {}, errors or {}
        self.now, self.running, self.started, self.closed = 0.0, [], [], False

    def start(self, job):
        assert len(self.running) < self.slots
        self.started.append(job.name)
        self.running.append((self.now + self.seconds.get(job.name, 1), job.name))

    def wait(self, seconds):
        first = min(self.running)
        self.running.remove(first)
        self.now, name = first
        ends = self.errors.get(name)
        yield name, ends.pop(0) if ends else Outcome("done")

    def close(self):
        self.closed = True


def made(name, after="", done=lambda: False):
    return Job(name, print, Path(name), done, after)


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


def test_a_failure_leaves_waiting_what_waits_for_it_and_the_rest_goes_on():
    engine, said = Made(errors={"b": [Outcome("failed", "no such thing")]}), []
    jobs = [made("a"), made("b"), made("c", "b"), made("d", "c"), made("e", "a")]
    outcomes = run_queue(jobs, engine, report=said.append)
    assert statuses(outcomes) == {
        "a": "done", "b": "failed", "c": "waiting", "d": "waiting", "e": "done",
    }  # fmt: skip
    assert any(text.startswith("[2/5] b: failed: no such thing") for text in said)
    assert engine.started == ["a", "b", "e"]


LAST_LINES = {
    "a mistake": (ValueError("one\nno such thing"), "no such thing"),
    "a diverged loss": (DivergedError("the loss is nan"), "the loss is nan"),
    "an error whose text says nothing": (KeyError("x"), "KeyError: 'x'"),
    "an error without a text": (ValueError(), "ValueError: "),
}


@pytest.mark.parametrize("case", LAST_LINES)
def test_of_an_error_its_last_line_is_kept(case):
    error, line = LAST_LINES[case]
    assert last_line(error) == line


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


def test_what_another_process_has_done_since_the_start_is_not_done_again(tmp_path):
    calls, done = [], [True, False]
    job = Job("a", lambda: calls.append("worked"), tmp_path, done.pop)
    assert carry_out(job) == Outcome("done")
    assert calls == ["worked"]
    assert carry_out(job) == Outcome("kept")
    assert calls == ["worked"]


def test_work_that_fails_is_not_done(tmp_path):
    job = Job("a", lambda: int("x"), tmp_path, lambda: False)
    assert carry_out(job).status == "failed"


HELD = Outcome("held", "held by process 7")


def test_held_jobs_are_tried_again_after_all_others_as_long_as_any_has_ended():
    engine, ends = Made(errors={"a": [HELD], "b": [HELD] * 3, "e": [Outcome("failed", "no")]}), []
    jobs = [made("a"), made("b"), made("c", "a"), made("d", "b"), made("e"),
            made("f", done=lambda: True)]  # fmt: skip
    outcomes = run_queue(
        jobs, engine, report=quiet, ended=lambda job, end: ends.append((job.name, end.status))
    )
    assert engine.started == ["a", "b", "e", "a", "b", "c", "b"]
    assert statuses(outcomes) == {
        "a": "done", "b": "held", "c": "done", "d": "waiting", "e": "failed", "f": "kept",
    }  # fmt: skip
    assert outcomes["b"].error == "held by process 7"
    assert ends == [
        ("f", "kept"), ("a", "held"), ("b", "held"), ("e", "failed"), ("a", "done"), ("b", "held"),
        ("c", "done"), ("b", "held"),
    ]  # fmt: skip


def test_where_all_that_is_left_is_held_nothing_waits_for_it():
    engine = Made(errors={"b": [HELD]})
    jobs = [made("a", done=lambda: True), made("b"), made("c", "b")]
    outcomes = run_queue(jobs, engine, report=quiet)
    assert engine.started == ["b"]
    assert statuses(outcomes) == {"a": "kept", "b": "held", "c": "waiting"}


def test_an_interrupt_ends_all():
    engine = Made(slots=2, errors={"a": [Outcome("interrupted")]})
    with pytest.raises(KeyboardInterrupt):
        run_queue([made("a"), made("b"), made("c")], engine, report=quiet)
    assert engine.started == ["a", "b"]
    assert engine.closed


def test_an_engine_that_cannot_start_a_job_fails_the_job_alone():
    class Weak(Made):
        def start(self, job):
            if job.name == "a":
                raise OSError("no more processes")
            super().start(job)

    outcomes = run_queue([made("a"), made("b")], Weak(), report=quiet)
    assert outcomes["a"].error == "no more processes"
    assert outcomes["b"].status == "done"


def test_the_lines_say_how_much_is_done_and_how_long_the_rest_takes(monkeypatch, tmp_path):
    engine, said = Made(slots=2, seconds={"a": 600, "b": 900, "c": 1200}), []
    monkeypatch.setattr(time, "monotonic", lambda: engine.now)
    jobs = [
        replace(made(name), folder=tmp_path / name, trainings=size)
        for name, size in {"a": 1, "b": 4, "c": 1}.items()
    ]
    for job in jobs:
        job.folder.mkdir()
    (tmp_path / "b" / "job.log").write_text(
        "> trial 1, learning rate 0.1: step 5 of 10\n{'loss': 1.0}\n> half a li"
    )
    scores = tmp_path / "c" / "job.log"
    scores.write_text("> training at learning rate 0.1: step 9 of 10\n> scoring\n")
    assert progress_of(jobs[2]) == Progress("scoring", 1.0)
    scores.unlink()
    run_queue(jobs, engine, report=said.append)
    b = "[2/3] b: trial 1, learning rate 0.1: step 5 of 10"
    left = duration((2.5 + 1) * 1200 / 2.5 / 2)  # after 600 s of each, a and 1.5 trials are done
    assert said[:5] == [
        "[1/3] a: started",
        "[2/3] b: started",
        f"[1/3] a: done in 10 min, about {left} left",
        f"{b}, about {left} left",  # once a minute
        "[3/3] c: started",
    ]
    assert any(line.startswith("[3/3] c: loading") for line in said)  # it has reported nothing yet
    assert said[-1] == "[3/3] c: done in 20 min"


def test_on_a_terminal_the_last_lines_say_how_far_the_running_jobs_are(monkeypatch, tmp_path):
    class Slow(Made):
        def wait(self, seconds):
            time.sleep(0.3)  # so that the lines are drawn between two ends
            yield from super().wait(seconds)

    shown = StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(queue, "plain_console", lambda stderr: terminal)
    jobs = [replace(made(name), folder=tmp_path / name) for name in "ab"]
    jobs[1].folder.mkdir()
    (tmp_path / "b" / "job.log").write_text("> training at learning rate 0.1: step 5 of 10\n")
    run_queue(jobs, Slow(slots=2, seconds={"b": 9}), report=quiet)
    assert "1 of 2 done" in shown.getvalue()
    assert "[2/2] b: training at learning rate 0.1: step 5 of 10" in shown.getvalue()


def test_a_run_that_is_not_picked_is_left_out():
    engine, seen = Made(slots=2), []

    def pick(ready, running):
        seen.append(([job.name for job in ready], sorted(running)))
        return ready[-1] if len(engine.started) < 2 else None

    outcomes = run_queue([made(name) for name in "abc"], engine, report=quiet, pick=pick)
    assert statuses(outcomes) == {"a": "waiting", "b": "done", "c": "done"}
    assert seen[:3] == [(["a", "b", "c"], []), (["a", "b"], ["c"]), (["a"], ["c"])]
