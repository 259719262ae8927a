"""``measure_training_growth.py``: both losses agree, and what it writes."""

import json

import measure_training_growth as benchmark
import pytest
from library.agreement import DisagreementError
from library.measuring import Request

SETTINGS = benchmark.Settings(layers=1, repetitions=1, threads=1, factor=8)


@pytest.fixture
def request_(tmp_path, monkeypatch):
    few = benchmark.Curve("vocabulary", [(4, 128, 64), (4, 128, 128)])
    monkeypatch.setattr(benchmark, "CURVES", {"vocabulary": few})
    return Request(SETTINGS, tmp_path / "growth.json", tmp_path / "growth.md")


def test_a_curve_has_both_losses_at_each_point(request_):
    benchmark.run(request_)
    points = json.loads(request_.file.read_text())["rows"]["vocabulary"]["points"]
    sizes = [(p["rows"], p["length"], p["vocabulary"]) for p in points]
    assert sizes == [(1, 16, 64), (1, 16, 128)]
    assert all(p["lorada_ms"] > 0 and p["plain_ms"] > 0 for p in points)
    assert "| vocabulary | 64 to 128 |" in request_.page.read_text()
    assert (request_.page.parent / "training-vocabulary.png").is_file()


def test_losses_that_differ_are_not_timed(request_, monkeypatch):
    steps = benchmark.steps

    def wrong(model, batch):
        return {**steps(model, batch), "plain": lambda turn: steps(model, batch)["plain"](0) + 1}

    monkeypatch.setattr(benchmark, "steps", wrong)
    with pytest.raises(DisagreementError, match="the loss"):
        benchmark.run(request_)


def test_a_quarter_of_each_row_has_labels():
    labels = benchmark.batch_of(2, 16, 50)["labels"]
    assert (labels != benchmark.IGNORED).sum(-1).tolist() == [4, 4]
