"""What methods gain and what they lose elsewhere: intervals, tests, sentences, smaller scales."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_comparison import HELD_OUT, KEPT, KEPT_ROWS, write_made_up
from retention_worlds import BASE, METHODS, MORE, draw, held

from lorada.compare.read_results import read_comparison
from lorada.compare.report.write_report import write_report
from lorada.compare.retention import KeptTables, intervals_of, loses_more_than, read_kept_tables

PICK = "lorada_la (0.2%)"


@pytest.fixture
def folder(tmp_path):
    return write_made_up(tmp_path / "made up")


def losses_of(path):
    return json.loads((path / "kept.json").read_text())["losses"][KEPT]


def write_losses(path, losses):
    (path / "kept.json").write_text(json.dumps({"losses": {KEPT: losses}}))


def runs_of(folder, label):
    candidates = read_comparison(folder).candidates
    (candidate,) = (one for one in candidates if one.label == label)
    return [folder / run.folder for run in candidate.runs]


@pytest.mark.parametrize("world", [BASE, replace(BASE, rows=1000, group=10)])
def test_intervals_hold_the_truth_in_made_up_worlds_and_alarms_are_rare(world):
    random = np.random.default_rng(65)
    tables = [draw(world, random) for _ in range(200)]
    assert np.mean([inside for table in tables for inside in held(table)]) > 0.9
    assert np.mean([bool(loses_more_than(table)) for table in tables[:60]]) < 0.12


def test_a_method_that_loses_more_than_the_others_is_named_with_them():
    world = replace(BASE, seeds=5, run=0.01)
    worse = loses_more_than(draw(world, np.random.default_rng(1), MORE))
    assert list(worse) == [METHODS[0]]
    assert sorted(worse[METHODS[0]]) == sorted(METHODS[1:])


def test_losses_are_those_of_the_runs_less_those_of_the_base_row_by_row(folder):
    tables = read_kept_tables(read_comparison(folder))
    of_base = np.array(losses_of(folder / "kept"))
    expected = [np.array(losses_of(run)) - of_base for run in runs_of(folder, PICK)]
    assert tables.growth[PICK] == pytest.approx(np.array(expected))
    assert (tables.rows, tables.seeds[PICK]) == (KEPT_ROWS, (1, 2, 3))


def test_a_row_without_anything_to_score_is_left_out_and_so_is_a_run_that_lacks_another(folder):
    for path in [folder / "kept", *(file.parent for file in folder.glob("runs/*/*/*/kept.json"))]:
        write_losses(path, [None, *losses_of(path)[1:]])
    first = runs_of(folder, PICK)[0]
    write_losses(first, [None, None, *losses_of(first)[2:]])
    tables = read_kept_tables(read_comparison(folder))
    assert tables.rows == KEPT_ROWS - 1
    assert tables.seeds[PICK] == (2, 3)


def test_rows_of_one_group_count_as_one():
    random = np.random.default_rng(0)
    rows = np.repeat(random.normal(0.3, 1, 20), 10) + random.normal(0, 0.1, (3, 200))
    alone = intervals_of({"lora": rows}, None)["lora"]
    together = intervals_of({"lora": rows}, [str(row // 10) for row in range(200)])["lora"]
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_where_no_row_differs_other_rows_may():
    nothing = intervals_of({"lora": np.zeros((2, 50))}, None, share=True)["lora"]
    assert (nothing.low, nothing.high) == pytest.approx((-7.11, 7.11), abs=0.01)


def test_the_report_has_gain_and_loss_side_by_side_and_names_who_loses_more(folder):
    summary, (page, as_json) = write_report(folder)
    report = json.loads(as_json.read_text())["retention"]
    by_name = {line["method"]: line for line in report["methods"]}
    pick = by_name[PICK]
    score = next(line.score for line in summary.lines if line.label == PICK)
    best = max(baseline.score for baseline in summary.baselines)
    assert pick["gain"]["value"] == pytest.approx(score - best)
    for interval in (pick["gain"], pick["lost"]):
        assert interval["low"] < interval["value"] < interval["high"]
    assert (report["rows"], report["files"]) == (KEPT_ROWS, ["other.jsonl"])
    assert "forgetting" not in as_json.read_text() + page.read_text()
    text = page.read_text()
    assert "lost elsewhere" in text
    assert "What it gains, and what it loses elsewhere" in text
    lost = f"Elsewhere {PICK} loses {pick['lost']['value']:.2f}"
    assert summary.sentences[0].startswith(lost)
    assert any("vblora loses significantly more on them than" in s for s in summary.sentences)
    letters = {name: line["letter"] for name, line in by_name.items()}
    assert not set(letters["ia3"]) & set(letters["vblora"])


def test_where_nothing_is_lost_no_method_is_called_worse(folder):
    for file in folder.glob("runs/*/*/*/kept.json"):
        losses = [loss - 0.01 for loss in losses_of(folder / "kept")]
        losses[0] -= float(file.parent.name == "seed1")
        write_losses(file.parent, losses)
    summary, _ = write_report(folder)
    assert summary.sentences[0].startswith(f"Elsewhere {PICK} ")
    assert "No method is shown to lose anything on them." in summary.sentences
    assert not any("loses significantly more" in sentence for sentence in summary.sentences)


@pytest.mark.parametrize("missing", ["plan", "base", "runs"])
def test_without_losses_the_report_says_nothing_of_them_and_why(folder, missing):
    if missing == "plan":
        plan = json.loads((folder / "plan.json").read_text())
        plan["kept"] = {"reason": "no rows"}
        (folder / "plan.json").write_text(json.dumps(plan))
    files = {"plan": [], "base": [folder / "kept/kept.json"]}
    for file in files.get(missing, folder.glob("runs/*/*/*/kept.json")):
        file.unlink()
    summary, (page, _) = write_report(folder)
    assert summary.retention.reason
    assert all(method.lost is None for method in summary.retention.methods)
    assert summary.retention.of(PICK).gain is not None
    assert not any("Elsewhere" in sentence for sentence in summary.sentences)
    assert "lost elsewhere" not in page.read_text()


def scale(folder, at, *, reason=""):
    """Score the pick at a scale: it keeps nine in ten right answers, and loses so much less."""
    base = losses_of(folder / "kept")
    for run in runs_of(folder, PICK):
        lines = [json.loads(line) for line in (run / "predictions.jsonl").open()]
        scaled = []
        for line in lines:
            score = line["metrics"]["exact_match"] * (line["row"] % 10 > 0)
            named = {**line, "rows": f"{HELD_OUT} (scale {at:g})"}
            scaled.append({**named, "metrics": {"exact_match": score}})
        text = "".join(json.dumps(line) + "\n" for line in [*lines, *scaled])
        (run / "predictions.jsonl").write_text(text)
        less = [low + at * (loss - low) for low, loss in zip(base, losses_of(run), strict=True)]
        record = {"at": [{"scale": at, "kept": {"losses": {KEPT: less}}}], "reason": reason}
        (run / "scaled.json").write_text(json.dumps(record if not reason else {"reason": reason}))


def test_a_smaller_scale_has_what_stays_of_the_gain_and_what_is_lost_less(folder):
    before, _ = write_report(folder)
    scale(folder, 0.75)
    summary, (page, as_json) = write_report(folder)
    (finding,) = summary.retention.scales.at
    whole = before.retention.of(PICK)
    assert finding.lost.value == pytest.approx(0.75 * whole.lost.value)
    assert finding.lost_change.value == pytest.approx(-0.25 * whole.lost.value)
    assert finding.gain.value == pytest.approx(whole.gain.value + finding.gain_change.value)
    assert finding.share == pytest.approx(finding.gain.value / whole.gain.value)
    assert -20 < finding.gain_change.low < finding.gain_change.high < 0
    text = f"At 0.75 of its scale {PICK} keeps {100 * finding.share:.0f} % of the gain and loses"
    assert any(sentence.startswith(text) for sentence in summary.sentences)
    assert json.loads(as_json.read_text())["retention"]["scales"]["at"][0]["scale"] == 0.75
    assert "A line joins the scales of one adapter" in page.read_text()


def test_by_a_metric_that_scaled_answers_lack_the_scales_are_left_out(folder):
    scale(folder, 0.5)
    for run in runs_of(folder, PICK):
        text = (run / "predictions.jsonl").read_text()
        (run / "predictions.jsonl").write_text(text.replace('"exact_match"', '"other"', 200))
    assert write_report(folder, "loss")[0].retention.scales is None  # the baselines have no loss


def test_a_method_without_a_scale_is_said_to_have_none(folder):
    scale(folder, 0.5, reason="it has no scale: at 0 it would not be the model as it was")
    summary, _ = write_report(folder)
    said = f"{PICK} was scored at no smaller scale: it has no scale"
    assert any(sentence.startswith(said) for sentence in summary.sentences)


def test_of_one_run_each_there_is_an_interval_and_no_test():
    tables = KeptTables({"a": np.ones((1, 9)) + np.arange(9), "b": np.ones((1, 9))}, {}, 9)
    assert loses_more_than(tables) == {}
    assert (
        intervals_of(tables.growth, None)["a"].low < 5 < intervals_of(tables.growth, None)["a"].high
    )
