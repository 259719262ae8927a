"""A run on tasks of lm-evaluation-harness, with a local task whose rows need no hub."""

import importlib.util
import json
import math
import sys

import pytest
import run_place
import torch
import yaml
from folders import byte_tokenizer

from lorada.inference.load import load_run

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


place = run_place.place
SETTINGS = [
    "lmam.length=6", "max_steps=8", "max_length=16", "report_to=[]", "lmam.map_learning_rate=0.5",
]  # fmt: skip
RUNS = {align: ("llama", "lmam", "texts", [f"lmam.align={align}"]) for align in ("start", "end")}
ROW_FILES = {"texts": [{"text": "1 and 2 make 3, 2 and 2 make 4"}], "test": ROWS}


@pytest.fixture
def makes(place, monkeypatch, tmp_path):
    """A task of 12 rows, which lm-eval keeps in a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {"data_files": {"test": str(place / "test.jsonl")}}
    (tmp_path / "makes.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": files}))
    return tmp_path / "makes.yaml"


@torch.no_grad()
def perplexity_by_hand(model, rows):
    """exp of the mean over rows of -log p(answer | question), one row at a time."""
    total, tokenizer = 0.0, byte_tokenizer()
    for row in rows:
        question = tokenizer(row["question"])["input_ids"]
        answer = tokenizer(row["answer"])["input_ids"]
        ids = torch.tensor([question + answer])
        # lm-eval never shows the last token, so a map at the end does not count it either.
        log_p = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)[0, len(question) - 1 :]
        total -= float(log_p.gather(-1, torch.tensor(answer)[:, None]).sum())
    return math.exp(total / len(rows))


@pytest.mark.parametrize("align", RUNS)
def test_lm_eval_gives_the_likelihoods_of_one_row_at_a_time(align, folder, makes, works):
    run = folder(align)
    expected = perplexity_by_hand(load_run(run).model, ROWS)
    scores = json.loads(works("evaluate", run, "--lm-eval", makes, "--json")[0])["lm_eval/makes"]
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
