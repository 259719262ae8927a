"""Reading a comparison's folder: all of it, and why runs are missing or left out."""

import json

import numpy as np
import pytest
from folders import refused
from made_up_comparison import HELD_OUT, write_made_up

from lorada.compare.read_results import read_comparison
from lorada.compare.report.write_report import write_report

LORA = "runs/lora/115200/seed1"


@pytest.fixture
def folder(tmp_path):
    return write_made_up(tmp_path / "made up", rows=30)


def by_label(results):
    return {candidate.label: candidate for candidate in results.candidates}


def test_scores_and_losses_are_seeds_by_rows_in_the_order_of_the_rows(folder):
    results = read_comparison(folder)
    lora = by_label(results)["lora (0.1%)"]
    assert lora.scores.shape == lora.losses.shape == (3, 30)
    assert results.rows == [(HELD_OUT, number) for number in range(1, 31)]
    lines = [json.loads(line) for line in (folder / LORA / "predictions.jsonl").open()]
    assert lora.scores[0].tolist() == [line["metrics"]["exact_match"] for line in lines]
    assert lora.losses[0].tolist() == [line["loss"] for line in lines]
    assert lora.sizes == "lora.r=2 lora.lora_alpha=4"
    assert lora.search.rate == 2e-4


def test_two_budgets_that_give_one_size_share_a_candidate(folder):
    found = by_label(read_comparison(folder))
    assert found["vblora"].candidate.budgets == {"0.1%": True, "0.2%": True}
    assert {"lora (0.1%)", "lora (0.2%)"} < found.keys()


def test_a_failed_run_and_a_method_that_does_not_fit_have_their_reason(folder):
    found = by_label(read_comparison(folder))
    failed = found["ia3+lora (0.2%)"]
    assert failed.scores.shape == (2, 30)
    assert failed.reason.startswith("runs/ia3+lora/234240/seed3 failed: the loss became NaN")
    assert found["boft"].reason == "boft does not fit: 576 is no multiple of 5"
    assert found["lora (0.1%)"].reason is None


@pytest.mark.parametrize(
    ("search", "chosen", "rank"),
    [
        ({"choice": 0}, "lora:r=2", 2), ({"choice": 1}, "lora:r=4", 4), ({"choice": None}, "", 4),
        (None, "", 4),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_setting_that_the_search_chose(folder, search, chosen, rank):
    plan = json.loads((folder / "plan.json").read_text())
    small, large, *_ = plan["candidates"]
    named = [{**one, "method": f"lora:r={one['parts']['lora']['r']}"} for one in (small, large)]
    plan["candidates"] = [{**large, "method": "lora:r=2|4", "choices": named}]
    (folder / "plan.json").write_text(json.dumps(plan))
    if search is not None:
        place = folder / "trials" / "lora:r=2%7C4" / str(large["trainable"])
        place.mkdir(parents=True)
        (place / "search.json").write_text(json.dumps({**search, "default": 1e-3, "trials": []}))
    (found,) = read_comparison(folder).candidates
    assert (found.method, found.chosen) == ("lora:r=2|4", chosen)
    assert found.sizes.startswith(f"lora.r={rank} ")
    assert found.trainable == {2: small, 4: large}[rank]["trainable"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def reply(text):
    return lambda path: path.write_text(text)


def without_score(path):
    path.write_text(path.read_text().replace('"exact_match": 100.0', '"exact_match": null', 1))


@pytest.mark.parametrize(
    ("name", "damage", "note"),
    [
        ("predictions.jsonl", cut, "predictions.jsonl line 30 is damaged"),
        ("predictions.jsonl", reply(""), "none of the held-out rows is scored"),
        ("predictions.jsonl", without_score, "has no exact_match"),
        ("predictions.jsonl", lambda path: path.unlink(), "is not finished"),
        ("result.json", cut, "result.json is not JSON"),
        ("result.json", lambda path: path.unlink(), "has no result.json"),
        ("result.json", reply('{"metrics": [1]}'), "is not the result of a run"),
    ],
)
def test_a_damaged_run_is_left_out_with_its_reason_and_the_others_stay(folder, name, damage, note):
    damage(folder / LORA / name)
    results = read_comparison(folder)
    lora = by_label(results)["lora (0.1%)"]
    assert [run.seed for run in lora.runs] == [2, 3]
    assert lora.reason.startswith(LORA)
    assert note in lora.reason
    assert "\n" not in lora.reason


def test_methods_can_be_read_by_their_losses_and_rows_without_one_are_left_out(folder):
    for path in folder.glob("runs/*/*/*/predictions.jsonl"):
        first, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([json.dumps({**json.loads(first), "loss": None}) + "\n", *rest]))
    results = read_comparison(folder, "loss")
    lora = by_label(results)["lora (0.1%)"]
    assert results.metric == "loss"
    assert results.rows == [(HELD_OUT, number) for number in range(2, 31)]
    assert (lora.scores == -lora.losses).all()
    found = by_label(read_comparison(folder, "chrf"))
    assert "row 1 of /home/me/test.jsonl has no chrf" in found["lora (0.1%)"].reason


def test_a_run_on_other_rows_is_left_out(folder):
    path = folder / LORA / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    results = read_comparison(folder)
    reason = f"{LORA}: it was scored on other rows"
    assert by_label(results)["lora (0.1%)"].reason == reason
    assert len(results.rows) == 30


def test_rows_that_are_not_held_out_are_ignored(folder):
    path = folder / LORA / "predictions.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    more = [{**line, "rows": name, "metrics": {}} for name in (f"{HELD_OUT} (base)", "other")]
    path.write_text(path.read_text() + "".join(json.dumps(one) + "\n" for one in more))
    assert by_label(read_comparison(folder))["lora (0.1%)"].scores.shape == (3, 30)


FILES = "comparison.yaml", "failures.json", "plan.json", "baselines.json"
DAMAGED = {
    **{(name, "{"): "" for name in FILES},
    ("comparison.yaml", "{recipe: {model: m}, seeds: 3}"): "seeds: input should be a valid list",
    ("comparison.yaml", "{recipe: {}}"): "the recipe has no model",
    ("plan.json", "{}"): "candidates: field required",
    ("failures.json", '{"runs/lora": 3}'): "runs/lora: input should be a valid string",
    ("baselines.json", '{"as_it_is": {"row_scores": {"loss": ["a"]}}}'): "row_scores.loss.0",
}


@pytest.mark.parametrize(("name", "text"), DAMAGED)
def test_a_damaged_file_of_the_comparison_is_refused_with_its_name(folder, name, text):
    (folder / name).write_text(text)
    said = f"{name} is damaged: put it back, or start again with --overwrite .*"
    refused(said + DAMAGED[name, text], lambda: read_comparison(folder))


def test_a_comparison_that_has_just_begun_has_no_scores(folder):
    for name in ("runs", "baselines.json", "failures.json", "trials"):
        (folder / name).rename(folder.parent / name)
    results = read_comparison(folder)
    assert results.rows == []
    assert all(np.size(candidate.scores) == 0 for candidate in results.candidates)
    assert by_label(results)["lora (0.1%)"].reason.startswith(f"{LORA} is not finished; ")


@pytest.mark.more
def test_the_comparison_of_the_picture_in_the_docs_can_be_read(tmp_path):
    write_comparison = pytest.importorskip("report_picture").write_comparison
    write_comparison(tmp_path)
    assert all(len(one.runs) == 5 for one in read_comparison(tmp_path).candidates)


def test_a_folder_without_a_plan_is_refused(folder):
    refused("holds no comparison", lambda: read_comparison(folder / "runs"))


def test_seeds_that_were_not_needed_are_not_missed(folder):
    asked = folder / "comparison.yaml"
    asked.write_text(asked.read_text() + "until: 0.5\n")
    (folder / LORA / "predictions.jsonl").unlink()
    lora = by_label(read_comparison(folder))["lora (0.1%)"]
    assert (len(lora.runs), lora.reason) == (2, None)


SEARCH = "trials/lora/115200/search.json"
REPLACED = ("x", [1], float("inf"))


def edits_of(stored):
    """A stored mapping with each of its values replaced, and its first two levels below too."""
    for key, value in stored.items():
        for replacement in REPLACED:
            yield {**stored, key: replacement}
        yield {name: kept for name, kept in stored.items() if name != key}
        if isinstance(value, dict):
            yield from ({**stored, key: edited} for edited in edits_of(value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ({**stored, key: [edited, *value[1:]]} for edited in edits_of(value[0]))


@pytest.mark.parametrize("name", [SEARCH, f"{LORA}/result.json", f"{LORA}/predictions.jsonl"])
def test_a_file_that_was_edited_by_hand_is_read_or_refused_in_one_line(tmp_path, name):
    folder = write_made_up(tmp_path / "made up", rows=8, seeds=(1,))
    path = folder / name
    first, *lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    stored = json.loads(first)
    if name.endswith("result.json"):
        stored["recipe"] = {"training": {"learning_rate": 2e-4}, "parts": {"lmam": {}}}
    refusals = []
    for edited in edits_of(stored):
        path.write_text("\n".join([json.dumps(edited), *lines]) + "\n")
        try:
            write_report(folder)
        except ValueError as error:
            refusals.append(str(error))
    assert all("\n" not in refusal and str(path.parent) in refusal for refusal in refusals)
