"""The page of published differences: its standard errors are what made-up answers have."""

import json

import numpy as np
import pytest
from library.page import read_marked
from paths import ROOT
from published import page


def spread(agree: float, rows: int = 400, p: float = 0.8, q: float = 0.7) -> float:
    """The standard deviation of a difference of two made-up scores, in points.

    ``agree`` is the share of rows on which both methods are right or wrong by the same luck.
    """
    draw = np.random.default_rng(0)
    luck, other = draw.random((2, 4000, rows))
    other = np.where(draw.random((4000, rows)) < agree, luck, other)
    return float((100 * ((luck < p).mean(1) - (other < q).mean(1))).std())


def test_the_larger_error_is_of_answers_apart_and_the_smaller_of_answers_alike(monkeypatch):
    monkeypatch.setitem(page.ROWS, "made_up", 400)
    one = page.difference(4, ("a", "b"), "made_up", 80.0, 70.0)
    assert one.apart == pytest.approx(spread(0.0), rel=0.05)
    assert one.alike == pytest.approx(spread(1.0), rel=0.05)
    assert one.alike < spread(0.5) < one.apart


def test_a_correlation_has_the_error_of_made_up_pairs(monkeypatch):
    monkeypatch.setitem(page.ROWS, "stsb", 300)
    draw = np.random.default_rng(0)
    x, noise = draw.standard_normal((2, 3000, 300))
    y = 0.9 * x + np.sqrt(1 - 0.81) * noise
    found = [100 * np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    assert page.variance("stsb", 90.0) ** 0.5 == pytest.approx(np.std(found), rel=0.06)


def test_pairs_are_of_one_model_and_one_size_where_both_are_printed():
    assert [(a["params"], b["key"]) for a, b in page.pairs(5)] == [
        ("0.5", "adapter_ffn"), ("0.06", "adapter_ffn_0.06"),
    ]  # fmt: skip
    for row, other in page.pairs(4):
        assert row["model"] == other["model"]
    assert [b["key"] for _, b in page.pairs(18)] == ["series", "lora", "dora"]


def test_the_page_is_what_its_script_writes():
    numbers = json.loads(page.PEFT.read_text(encoding="utf-8"))
    assert read_marked(page.PAGE, "published/page.py") == page.generated(numbers)
    assert (ROOT / "docs" / "published.png").is_file()
