"""A run reads its base model's config and tokenizer, its rows and its method once."""

from collections import Counter

import pytest
from folders import bert_folder, llama_folder, rows_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.runs import prepare
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

LABELS = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(16)]


@pytest.fixture
def reads(monkeypatch):
    """How often each config and each tokenizer is read, and each step of a preparation taken."""
    counts = Counter()

    def count(owner, name, label):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[label(*args)] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(AutoConfig, "from_pretrained", lambda path, *_: f"config {path}")
    count(PreTrainedConfig, "get_config_dict", lambda path, *_: f"config file {path}")
    count(AutoTokenizer, "from_pretrained", lambda path, *_: f"tokenizer {path}")
    for step in ("build_method", "training_rows"):
        count(prepare, step, lambda *_, step=step: step)
    return counts


@pytest.mark.parametrize("method", ["lorada_la", "full"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_config_is_read_once_for_a_training_an_evaluation_and_an_export(
    kind, method, tmp_path, reads
):
    base = str({"llama": llama_folder, "bert": bert_folder}[kind](tmp_path / kind))
    rows = str(rows_file(tmp_path / "rows.jsonl", LABELS if kind == "bert" else None))
    pairs = ["max_steps=2", "save_steps=1", "dev_rows=4", "report_to=[]"]
    options = {"method": method, "model": base, "data": rows, "output": str(tmp_path / "run")}
    recipe = load_recipe(None, pairs, options)
    once = {f"config {base}": 1, f"config file {base}": 1, f"tokenizer {base}": 1}

    reads.clear()
    run = train(recipe, quiet=True).run
    reads[f"config file {base}"] = 1  # PEFT reads it as well, to compare sizes of vocabularies
    assert reads == {**once, "build_method": 1, "training_rows": 1}

    # A model that was trained whole has a config of its own.
    whole = run / "model"
    own = {f"config {whole}": 1, f"config file {whole}": 1} if method == "full" else {}
    reads.clear()
    evaluate(load_run(run), rows)
    assert reads == {**once, **own}

    reads.clear()
    export(run, tmp_path / "exported")
    reads[f"config file {base}"] = 1  # likewise
    assert reads == {**once, **own}


def test_a_resumed_training_reads_a_config_once_too(tmp_path, reads):
    base = str(llama_folder(tmp_path / "llama"))
    rows = str(rows_file(tmp_path / "rows.jsonl"))
    options = {"method": "lmam", "model": base, "data": rows, "output": str(tmp_path / "run")}
    recipe = load_recipe(None, ["max_steps=2", "save_steps=1", "report_to=[]"], options)
    run = train(recipe, quiet=True).run
    (run / "result.json").unlink()
    reads.clear()
    train(recipe, resume=True, quiet=True)
    assert reads[f"config {base}"] == 1
