"""A run on tasks of lm-evaluation-harness, with a local task whose rows need no hub."""

import importlib.util
import json
import math
import sys

import pytest
import torch
import yaml
from folders import byte_tokenizer, llama_folder, rows_file

from lorada.inference.load import load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed"
)

ROWS = [
    {"question": f"{a} and {b} make", "answer": "x" * a + str(a + b)}
    for a in range(1, 5)
    for b in (1, 20, 300)
]
TASK = {
    "task": "makes",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    ],
    "metadata": {"version": 1.5},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with a map at the end, one with the map at the start, and a task of 12 rows."""
    place = tmp_path_factory.mktemp("lm_eval")
    llama_folder(place / "llama")
    data = rows_file(place / "rows.jsonl", [{"text": "1 and 2 make 3, 2 and 2 make 4"}])
    for align in ("start", "end"):
        settings = [
            f"lmam.align={align}", "lmam.length=6", "max_steps=8", "max_length=16",
            "training.report_to=[]", "lmam.map_learning_rate=0.5",
        ]  # fmt: skip
        options = {"method": "lmam", "model": str(place / "llama"), "data": str(data)}
        recipe = load_recipe(None, settings, {**options, "output": str(place / align)})
        train(recipe, quiet=True)
    rows_file(place / "test.jsonl", ROWS)
    files = {"data_files": {"test": str(place / "test.jsonl")}}
    (place / "makes.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": files}))
    return place


@pytest.fixture
def lorada(call, monkeypatch, tmp_path):
    """What a command prints, and its exit code; lm-eval keeps rows in a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return call


@torch.no_grad()
def perplexity_by_hand(run, rows):
    """exp of the mean over rows of -log p(answer | question), one row at a time."""
    total, tokenizer = 0.0, byte_tokenizer()
    for row in rows:
        question = tokenizer(row["question"])["input_ids"]
        answer = tokenizer(row["answer"])["input_ids"]
        ids = torch.tensor([question + answer])
        # lm-eval never shows the last token, so a map at the end does not count it either.
        log_p = run.model(input_ids=ids[:, :-1]).logits.log_softmax(-1)[0, len(question) - 1 :]
        total -= float(log_p.gather(-1, torch.tensor(answer)[:, None]).sum())
    return math.exp(total / len(rows))


@pytest.mark.parametrize("align", ["start", "end"])
def test_lm_eval_gives_the_likelihoods_of_one_row_at_a_time(align, place, lorada):
    expected = perplexity_by_hand(load_run(place / align), ROWS)
    words = ("evaluate", place / align, "--lm-eval", place / "makes.yaml", "--json")
    code, out, _ = lorada(*words)
    assert code == 0
    scores = json.loads(out)["lm_eval/makes"]
    assert scores["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert (scores["n"], scores["version"]) == (len(ROWS), "1.5")
    saved = json.loads((place / align / "result.json").read_text())["metrics"]
    assert saved["lm_eval/makes"] == scores


def test_the_base_and_a_part_of_the_rows_can_be_scored_and_are_shown_in_the_table(place, lorada):
    run = load_run(place / "start")
    with run.model.disable_adapter():
        expected = perplexity_by_hand(run, ROWS[:5])
    assert perplexity_by_hand(run, ROWS[:5]) != pytest.approx(expected, rel=1e-2)
    words = ("evaluate", place / "start", "--lm-eval", place / "makes.yaml")
    code, out, _ = lorada(*words, "--limit", 5, "--base")
    assert code == 0
    assert "lm_eval/makes" in out
    saved = json.loads((place / "start" / "result.json").read_text())["metrics"]
    assert saved["lm_eval/makes (base)"]["n"] == 5
    assert saved["lm_eval/makes (base)"]["perplexity"] == pytest.approx(expected, rel=1e-4)


BAD = {
    "a file that is not there": (["--lm-eval", "no.yaml"], "lm-eval cannot load its task no.yaml"),
    "a limit of nothing": (["--limit", "3"], "--limit 3 is for --lm-eval"),
    "rows of one's own": (["--lm-eval", "piqa", "--data", "x.jsonl"], "leave out x.jsonl"),
}


# lm-eval reads all of its own tasks before it finds one of them.
NAMED = {
    "an unknown task": (["--lm-eval", "hellaswagg"], "unknown task of lm-eval 'hellaswagg'; did"),
    "rows on the hub": (["--lm-eval", "piqa"], "lm-eval cannot load its task piqa"),
}


@pytest.mark.parametrize("case", [*BAD, *(pytest.param(c, marks=pytest.mark.slow) for c in NAMED)])
def test_what_lm_eval_cannot_do_is_one_line_and_changes_nothing(case, place, lorada):
    words, message = {**BAD, **NAMED}[case]
    before = (place / "start" / "result.json").read_bytes()
    code, out, err = lorada("evaluate", place / "start", *words)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert (place / "start" / "result.json").read_bytes() == before


def test_a_missing_lm_eval_names_the_extra(place, lorada, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = lorada("evaluate", place / "start", "--lm-eval", "piqa")
    assert code == 2
    assert "install the extra `eval`" in err
