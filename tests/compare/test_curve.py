"""``--curve``: the pick on half and a quarter of the training rows, and what to do next."""

import json
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from comparisons import comparison
from folders import ROWS, bert_folder, rows_file

from lorada.compare.curve import Curve, CurvePoint
from lorada.compare.curve_jobs import check_curve
from lorada.compare.report.next_steps import curve_sentence, next_steps
from lorada.data.rows.own_rows import load_rows
from lorada.data.rows.training_rows import half_of
from lorada.decision.more_rows import gain_from_rows
from lorada.decision.run_variances import Common
from lorada.decision.score_format import ScoreFormat
from lorada.decision.statistics import difference

# One letter, as often as its number, is easily learned; no row is a copy of another.
LETTERS = [{"text": "ab"[i % 2] * (i // 2 + 1), "label": "ny"[i % 2]} for i in range(56)]
SETTINGS = [
    "max_steps=40", "per_device_train_batch_size=8", "max_length=64", "pooling=mean",
    "training.report_to=[]",
]  # fmt: skip
CURVE = Curve(
    "lora",
    (CurvePoint(502, 2, 66.0), CurvePoint(1005, 2, 70.1), CurvePoint(2010, 3, 72.2)),
    gain=2.1,
    low=0.4,
    high=3.8,
)
PERCENT = ScoreFormat.of("%")


def test_half_of_the_rows_keeps_groups_whole_and_the_shares_of_classes(tmp_path):
    rows = []
    for group in range(64):
        label = "rare" if group % 4 == 0 else "usual"
        for copy in range(2):
            rows.append({"text": f"{group} {copy}", "label": label, "group": f"g{group}"})
    whole = load_rows(str(rows_file(tmp_path / "rows.jsonl", rows)))
    half = half_of(whole)
    quarter = half_of(half)
    assert (len(half.rows), len(quarter.rows)) == (64, 32)
    assert set(quarter.indices) < set(half.indices)
    assert half.indices == half_of(whole).indices  # the same at each call
    for part in (half, quarter):
        assert part.classes["rare"] * 3 == part.classes["usual"]
        assert set(Counter(row["group"] for row in part.rows).values()) == {2}


def test_the_gain_is_the_paired_difference_of_two_methods():
    random = np.random.default_rng(0)
    ease = random.normal(60, 20, 300)
    whole, half, quarter, other = (
        ease + points + random.normal(0, 5, (seeds, 300))
        for points, seeds in ((4, 3), (0, 2), (-4, 2), (1, 3))
    )
    measured = gain_from_rows(whole, half, [quarter, other])
    assert measured == difference(whole, half, Common.of([whole, half, quarter, other]))
    low, high = measured.interval()
    assert low < 4 < high
    assert low > 0
    # Copies of rows in one group tell nothing new, so the interval stays as wide.
    twice = [np.repeat(table, 2, axis=1) for table in (whole, half, quarter, other)]
    of_groups = gain_from_rows(twice[0], twice[1], twice[2:], np.repeat(np.arange(300), 2))
    assert of_groups.error == pytest.approx(measured.error)


def test_what_is_measured_is_said_and_nothing_beyond():
    sentence = curve_sentence(CURVE, PERCENT)
    assert sentence == (
        "From half of the training rows (1,005) to all of them (2,010), with as many steps: "
        "+2.1 points (0.4 to 3.8) for lora."
    )
    worse = replace(CURVE, gain=-0.3, low=-2.0, high=1.4)
    assert ": -0.3 points (-2.0 to 1.4) for lora." in curve_sentence(worse, PERCENT)
    alike = replace(CURVE, gain=0.0, low=0.0, high=0.0)
    assert ": none, as all of its runs score every held-out row alike" in curve_sentence(
        alike, PERCENT
    )


def test_what_to_do_next_has_the_numbers_of_the_decision():
    decision = SimpleNamespace(expected_loss={"lora": 0.6, "ia3": 2.0}, loss_after_more_runs=0.2)
    gains = {step.step: step.gain for step in next_steps(CURVE, decision, PERCENT)}
    assert gains == {
        "more training rows": "+2.1 points (0.4 to 3.8)",
        "another of these methods": "0.6 points",
        "3 more seeds of each method": "0.4 points",
    }
    assert len(next_steps(CURVE, None, PERCENT)) == 1


@pytest.mark.parametrize(
    ("rows", "seeds", "said"),
    [
        (31, [1, 2], "31 are too few for a quarter that fills a step of 8: give 32 rows or more"),
        (32, [4], "--curve needs two seeds of each method, and --seeds has 4 alone"),
    ],
)
def test_too_few_rows_or_seeds_are_refused(tmp_path, rows, seeds, said):
    read = load_rows(str(rows_file(tmp_path / "rows.jsonl", ROWS[:rows])))
    asked = comparison(tmp_path, methods=["lora"], seeds=seeds)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_curve(asked, read, batch=8)


def test_as_many_rows_as_fill_four_steps_are_enough(tmp_path):
    read = load_rows(str(rows_file(tmp_path / "rows.jsonl", ROWS[:32])))
    check_curve(comparison(tmp_path, methods=["lora"], seeds=[1, 2]), read, batch=8)


@pytest.mark.more
def test_a_finished_comparison_is_resumed_with_a_curve(lab, tmp_path):
    bert_folder(tmp_path / "bert")
    rows_file(tmp_path / "train.jsonl", LETTERS[:40])
    rows_file(tmp_path / "test.jsonl", LETTERS[40:])
    folder = tmp_path / "out"
    words = [
        "compare", "--model", tmp_path / "bert", "--data", tmp_path / "train.jsonl",
        "--held-out", tmp_path / "test.jsonl", "--methods", "lora", "--seeds", "1,2",
        "--rates", "0.03", "--output", folder, *SETTINGS,
    ]  # fmt: skip
    reply = lab.command(list(map(str, words)), folder)
    assert reply["code"] == 0, reply["said"]
    before = json.loads((folder / "report.json").read_text())
    assert before["best"] == "lora"
    assert before["curve"] is None

    reply = lab.command(["compare", str(folder), "--resume", "--curve"], folder)
    assert reply["code"] == 0, reply["said"]
    after = json.loads((folder / "report.json").read_text())
    assert [point["rows"] for point in after["curve"]["points"]] == [10, 20, 40]
    assert after["curve"]["low"] <= after["curve"]["gain"] <= after["curve"]["high"]
    assert after["next_steps"][0]["step"] == "more training rows"
    assert "From half of the training rows (20) to all of them (40)" in after["sentences"][0]
    assert "From half of the training rows (20)" in (folder / "report.html").read_text()
    steps = set()
    for path in folder.glob("**/seed*/result.json"):
        steps.add(json.loads(path.read_text())["steps"])
    assert steps == {40}  # only the rows differ
    assert len(list(folder.glob("curve/lora/*/*/seed*/result.json"))) == 4
