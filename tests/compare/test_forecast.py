"""The three steps that are measured: those of the real training, and nothing is logged of them."""

import pytest
from comparisons import comparison, model_and_rows
from folders import refused, rows_file

from lorada.compare import forecast
from lorada.compare.jobs.job import Outcome
from lorada.compare.run import planned


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("measure"))


def measured(place, folder, method, monkeypatch, **training):
    """The time of a step of a method in a forecast, and the Trainer that measured it."""
    found = []

    def seen(*args, **kwargs):
        found.append(set_up(*args, **kwargs))
        return found[-1]

    set_up = forecast.set_up
    monkeypatch.setattr(forecast, "set_up", seen)
    asked = comparison(
        place, methods=[method], seeds=[1], trials=0,
        recipe={"max_length": 32, "training": training},
    )  # fmt: skip
    plan = planned(asked, folder, resume=False, report=print)
    (candidate,) = forecast.forecast(asked, plan, 1, print).candidates
    return candidate.costs.seconds_per_step, found[0].trainer


def test_a_schedule_in_steps_is_that_of_the_whole_training_and_nothing_is_logged(
    place, tmp_path, monkeypatch, jobs_here
):
    pytest.importorskip("tensorboard")
    training = {"max_steps": 20, "report_to": ["tensorboard"]}
    method = "adalora:tinit=4:tfinal=4"
    seconds, trainer = measured(place, tmp_path, method, monkeypatch, **training)
    assert seconds > 0
    assert (trainer.state.max_steps, trainer.state.global_step) == (20, 3)
    assert trainer.args.report_to == []


def test_a_forecast_is_not_below_what_the_runs_of_one_method_take(place, tmp_path, monkeypatch):
    asked = comparison(place, methods=["lora"], seeds=[1, 2], trials=0)
    plan = planned(asked, tmp_path, resume=False, report=print)
    costs = forecast.StepCosts(seconds_per_step=2.0, peak_memory_bytes=0, start_seconds=1.0)
    measured = [forecast.CandidateForecast(plan.candidates[0], costs)]
    monkeypatch.setattr(forecast, "_measure", lambda *_: measured)
    found = forecast.forecast(asked, plan, 4, print)
    assert found.seconds == found.candidates[0].seconds == 4.0 * plan.steps


def test_steps_are_measured_with_the_cards_of_a_job(place, tmp_path, monkeypatch):
    asked = comparison(place, methods=["lora"], seeds=[1], trials=0)
    plan = planned(asked, tmp_path, resume=False, report=print)
    pools = []

    class Pool(forecast.Workers):
        def __init__(self, *given):
            pools.append(given)
            super().__init__(1)

    monkeypatch.setattr(forecast, "Workers", Pool)
    monkeypatch.setattr(forecast, "run_queue", lambda jobs, pool, report: {
        job.name: Outcome("failed", "no card") for job in jobs
    })  # fmt: skip
    refused("no card", lambda: forecast.forecast(asked, plan, 4, print, gpus_per_job=0.25))
    assert pools == [(1, 0.25)]


def test_three_steps_are_measured_of_a_training_with_fewer(place, tmp_path, monkeypatch, jobs_here):
    seconds, trainer = measured(place, tmp_path, "lora", monkeypatch, max_steps=1)
    assert seconds > 0
    assert trainer.state.global_step == 3


def test_rows_that_are_dropped_are_not_measured_and_are_said(place, tmp_path, works, jobs_here):
    """Every second row has nothing to learn within the length; they are those that are longest."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    filled = {"role": "system", "content": "x" * 60}
    long = [{"messages": [filled, {**turns[0], "content": f"{n}"}, turns[1]]} for n in range(30)]
    short = [{"messages": [{**turns[0], "content": f"a{n}"}, turns[1]]} for n in range(30)]
    both = [row for pair in zip(long, short, strict=True) for row in pair]
    data = rows_file(tmp_path / "chats.jsonl", both)
    out, _ = works(
        "compare", "--model", place / "llama", "--data", data, "--held-out", "20%", "--trials", 0,
        "--methods", "lora", "--output", tmp_path / "c", "--dry-run", "max_length=40",
        "training.report_to=[]", "max_steps=4",
    )  # fmt: skip
    said = " ".join(out.split())
    assert "no method can be run" not in said
    assert "are left out, as max_length=40 leaves nothing to learn" in said
    assert "Tokens of the training rows: " in said
    assert "and the model reads 64: max_length=64 cuts the least" in said
