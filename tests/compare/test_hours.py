"""``--hours``: what fits into a time, in which order, and what is refused."""

import time

import pytest
from comparisons import comparison, model_and_rows
from folders import refused

from lorada.compare import hours
from lorada.compare.forecast import StepCosts
from lorada.compare.hours import (
    HOUR,
    MeasuredComparison,
    TimeLimit,
    WithinHours,
    fitting_trials,
    job_times,
    whole_seconds,
)
from lorada.compare.jobs.job import Outcome
from lorada.compare.jobs.queue import first_of, run_queue
from lorada.compare.run import planned
from lorada.compare.trainings import comparison_jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("hours"))


class Clock:
    """A clock that a test turns on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


class OneSlot:
    """A pool in which each job takes so many times what was expected of it, by a made-up clock."""

    slots = 1

    def __init__(self, clock, times, factor=1.0):
        self.clock, self.times, self.factor = clock, times, factor
        self.begun, self.running = [], None

    def start(self, job):
        self.running = job.name
        self.begun.append(job.name)

    def wait(self, seconds):
        self.clock.now += self.times[self.running].seconds * self.factor
        yield self.running, Outcome("done")

    def close(self):
        pass


def measured(place, step_seconds=1.0, **changes):
    """A comparison of LoRA and IA3 of which each training takes 10 s + 2 steps."""
    settings = {"methods": ["lora", "ia3"], "seeds": [1, 2, 3], "trials": 4, **changes}
    asked = comparison(place, recipe={"max_length": 32, "training": {"max_steps": 2}}, **settings)
    plan = planned(asked, place / "none", resume=False, report=lambda line: None)
    costs = StepCosts(seconds_per_step=step_seconds, peak_memory_bytes=0, start_seconds=10.0)
    return MeasuredComparison(asked, plan, {one.path: costs for one in plan.runnable})


def limit_of(seconds, **changes):
    """A limit that leaves so many seconds for jobs, from now on."""
    whole = seconds / (1 - hours.RESERVE)
    fields = {"hours": whole / HOUR, "ends_at": time.monotonic() + whole, **changes}
    return TimeLimit(**{"trials_are_fixed": False, **fields})


def run_within(place, seconds, clock, *, factor=1.0, pick=first_of, **changes):
    """Run the jobs of a comparison by a made-up clock; return the pool and the picker."""
    one = measured(place, **changes)
    jobs = comparison_jobs(one.comparison, one.plan, place / "out")
    times = job_times(one, place / "out", jobs)
    within = WithinHours(limit_of(seconds), times, 1, pick)
    pool = OneSlot(clock, times, factor)
    run_queue(jobs, pool, report=lambda line: None, pick=within.pick, ended=within.note_end)
    return pool, within, jobs


# Each training takes 12 s: (trials + runs) × 2 methods.
@pytest.mark.parametrize(
    ("trainings_each", "trials"), [(7, 4), (6, 4), (5.9, 3), (5, 3), (4, 2), (3, 2)]
)
def test_runs_are_left_out_before_rates_and_then_the_second_run(
    place, monkeypatch, trainings_each, trials
):
    Clock(monkeypatch)
    limit = limit_of(trainings_each * 2 * 12.0)
    assert fitting_trials([measured(place)], limit, 1) == trials


def test_what_does_not_fit_is_refused_with_the_hours_that_suffice(place, monkeypatch):
    Clock(monkeypatch)
    one = measured(place, step_seconds=295.0)  # a training takes 600 s
    said = r"one run of each method with its search takes about 60 min: pass --hours 1\.16"
    refused(said, lambda: fitting_trials([one], limit_of(0.5 * HOUR * 0.95), 1))
    assert fitting_trials([one], limit_of(1.16 * HOUR * 0.95), 1) == 2
    # Rates that the user named are all tried.
    fixed = limit_of(1.16 * HOUR * 0.95, trials_are_fixed=True)
    refused("--hours", lambda: fitting_trials([one], fixed, 1))


def test_several_slots_and_comparisons_share_the_time(place):
    one = measured(place)
    alone = whole_seconds([one], 2, 1, 1)
    assert alone == pytest.approx(6 * 12.0)
    assert whole_seconds([one, one], 2, 1, 1) == pytest.approx(2 * alone)
    # Half of all, and half of the longest candidate, which may begin last.
    assert whole_seconds([one], 2, 1, 2) == pytest.approx(alone / 2 + 3 * 12.0 / 2)


def test_first_runs_come_before_second_ones_and_nothing_is_begun_that_would_not_end(
    place, monkeypatch
):
    clock = Clock(monkeypatch)
    pool, within, jobs = run_within(place, 11.5 * 12.0, clock, trials=2)
    kinds = [name.split()[-2:] if "seed" in name else ["search"] for name in pool.begun]
    assert kinds[:2] == [["search"]] * 2
    assert [kind[-1] for kind in kinds[2:]] == ["1", "1", "2", "2", "3", "3"]
    assert within.did_not_fit(jobs) == 0

    clock.now = 0.0
    pool, within, jobs = run_within(place, 7.5 * 12.0, clock, trials=2)
    assert len(pool.begun) == 2 + 3  # two searches of two trainings each, and three runs
    assert clock.now <= 7.5 * 12.0
    assert within.did_not_fit(jobs) == 3


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_what_jobs_really_take_corrects_what_was_measured(place, monkeypatch, factor):
    clock = Clock(monkeypatch)
    pool, _, _ = run_within(
        place, 14.2 * 12.0, clock, factor=factor, trials=2, seeds=[*range(1, 13)]
    )
    trainings = 4 + len(pool.begun) - 2
    assert trainings == int(14.2 / factor)
    assert clock.now <= 14.2 * 12.0


def test_a_search_needs_the_time_of_a_run_too(place, monkeypatch):
    clock = Clock(monkeypatch)
    pool, within, jobs = run_within(place, 5.5 * 12.0, clock, trials=2)
    # One method is searched and run; the search of the other would end, but not a run after it.
    assert [("search" in name) for name in pool.begun] == [True, False, False, False]
    assert within.did_not_fit(jobs) == len(jobs) - 4


@pytest.mark.more
def test_a_comparison_that_was_cut_by_the_time_is_reported_and_goes_on(
    place, works, mistake, json_of, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    asked = [
        "compare", "--model", place / "llama", "--data", place / "train.jsonl", "--held-out",
        place / "test.jsonl", "--methods", "lora,ia3", "--seeds", "1,2,3", "--trials", 0,
        "--output", folder, "max_steps=2", "max_length=32", "max_new_tokens=2",
        "training.report_to=[]",
    ]  # fmt: skip
    said = mistake(*asked, "--hours", 0.0001)
    assert "--hours 0.0001: one run of each method with its search takes about" in said
    assert not folder.exists()
    assert "--hours -1: pass a number above 0" in mistake(*asked, "--hours", -1)

    # As if the time were over once each method has two runs.
    usual = WithinHours._needed

    def needed(self, job, ready, running):
        return float("inf") if job.name.endswith("seed 3") else usual(self, job, ready, running)

    monkeypatch.setattr(WithinHours, "_needed", needed)
    _, err = works(*asked, "--hours", 0.5, "--price", 2)
    assert "not begun, as the time did not suffice: 2 jobs" in err
    assert f"lorada compare {folder} --resume --hours 0.5" in err
    assert "at 2 an hour)" in err
    found = json_of("report", folder)
    assert found["seeds"] == [1, 2]
    assert any("4 of 6 runs fitted into the time" in sentence for sentence in found["sentences"])
    assert all(line["score"] is not None for line in found["lines"])

    monkeypatch.undo()
    _, err = works("compare", folder, "--resume", "--hours", 0.5)
    assert "did not suffice" not in err
    found = json_of("report", folder)
    assert found["seeds"] == [1, 2, 3]
    assert not any("fitted into the time" in sentence for sentence in found["sentences"])
