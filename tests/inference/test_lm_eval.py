"""A run on tasks of lm-evaluation-harness, with a local task whose rows need no hub."""

import dataclasses
import importlib.util
import json
import sys

import pytest
import run_place
from lm_eval_task import CHOICES, ROWS, perplexity_by_hand, task_file

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed"
)

place = run_place.place
SETTINGS = [
    "lmam.length=6", "max_steps=8", "max_length=16", "report_to=[]", "lmam.map_learning_rate=0.5",
]  # fmt: skip
RUNS = {
    **{align: ("llama", "lmam", "texts", [f"lmam.align={align}"]) for align in ("start", "end")},
    "choices": ("llama", "lmam", "choices", ["max_length=64"]),
}
ROW_FILES = {
    "texts": [{"text": "1 and 2 make 3, 2 and 2 make 4"}],
    "choices": [{**row, "candidates": [f" {one}" for one in row["candidates"]]} for row in CHOICES],
}


@pytest.fixture
def makes(monkeypatch, tmp_path):
    """A task of 12 rows, which lm-eval keeps in a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return task_file(tmp_path)


def test_length_norm_chooses_as_lm_evals_acc_and_acc_norm_do(folder, makes, json_of, place):
    run = load_run(folder("choices"))
    theirs = json_of("evaluate", run.folder, "--lm-eval", makes.with_name("picks.yaml"))
    scores = theirs["lm_eval/picks"]
    assert len({scores["acc"], scores["acc_norm"], scores["acc_bytes"]}) == 3
    for norm, name in (("none", "acc"), ("characters", "acc_norm")):
        recipe = run.recipe.model_copy(update={"length_norm": norm})
        ours = evaluate(dataclasses.replace(run, recipe=recipe), str(place / "choices.jsonl"))
        assert ours["accuracy"] == pytest.approx(100 * scores[name])


@pytest.mark.parametrize("align", ["start", "end"])
def test_lm_eval_gives_the_likelihoods_of_one_row_at_a_time(align, folder, makes, json_of):
    run = folder(align)
    expected = perplexity_by_hand(load_run(run).model, ROWS)
    scores = json_of("evaluate", run, "--lm-eval", makes)["lm_eval/makes"]
    assert scores["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert (scores["n"], scores["version"]) == (len(ROWS), "1.5")
    saved = json.loads((run / "result.json").read_text())["metrics"]
    assert saved["lm_eval/makes"] == scores


def test_the_base_and_a_part_of_the_rows_can_be_scored_and_are_shown_in_the_table(
    folder, makes, works
):
    run = load_run(folder("start"))
    with run.model.disable_adapter():
        expected = perplexity_by_hand(run.model, ROWS[:5])
    assert perplexity_by_hand(run.model, ROWS[:5]) != pytest.approx(expected, rel=1e-2)
    out, _ = works("evaluate", run.folder, "--lm-eval", makes, "--limit", 5, "--base")
    assert "lm_eval/makes" in out
    saved = json.loads((run.folder / "result.json").read_text())["metrics"]
    assert saved["lm_eval/makes (base)"]["n"] == 5
    assert saved["lm_eval/makes (base)"]["perplexity"] == pytest.approx(expected, rel=1e-4)


# lm-eval reads all of its own tasks before it finds one of them.
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("no.yaml", "lm-eval cannot load its task no.yaml"),
        pytest.param(
            "hellaswagg", "unknown task of lm-eval 'hellaswagg'; did", marks=pytest.mark.slow
        ),
        pytest.param("piqa", "lm-eval cannot load its task piqa", marks=pytest.mark.slow),
    ],
)
def test_what_lm_eval_cannot_do_is_one_line_and_changes_nothing(
    task, message, folder, makes, mistake
):
    result = folder("start") / "result.json"
    before = result.read_bytes()
    assert message in mistake("evaluate", folder("start"), "--lm-eval", task)
    assert result.read_bytes() == before


def test_a_missing_lm_eval_names_the_extra(folder, mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    line = mistake("evaluate", folder("start"), "--lm-eval", "piqa")
    assert "install the extra `eval`" in line
