"""Task heads: what a checkpoint lacks trains, is saved, and is the same at every load."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from folders import bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from paths import HELPERS
from programs import printed
from safetensors.torch import load_file, save_file
from trained_runs import QUICK, run_recipe
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

from lorada.data.rows.training_rows import class_order
from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.methods.head_modules import head_modules, in_head
from lorada.support.task_head import TaskHead
from lorada.training.models.adapters import load_adapted
from lorada.training.models.loading import load_model
from lorada.training.train import train

# By architecture: the modules of a head for classes, which its checkpoints on the hub lack.
HEADS = {
    "deberta_v2": ("classifier", "pooler"),
    "bert": ("bert.pooler", "classifier"),
    "roberta": ("classifier",),
    "distilbert": ("classifier", "pre_classifier"),
    "t5": ("classification_head",),
    "llama": ("score",),
}
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(16)]


def checkpoint(folder: Path, name: str) -> Path:
    """A tiny model as the hub has it, which is without a head for classes."""
    ARCHITECTURES[name](vocab_size=259, pad_token_id=0).save_pretrained(folder)
    byte_tokenizer(ends=name == "t5").save_pretrained(folder)  # its head reads the last end token
    return folder


SETTINGS = [*QUICK, "max_steps=2", "save_strategy=no"]
RUNS = {
    **{f"{name}-trained": (name, "lora", "labels", []) for name in HEADS},
    **{f"{name}-frozen": (name, "lora", "labels", ["train_head=false"])
       for name in ("deberta_v2", "bert")},
}  # fmt: skip


def trained(model: Path, rows: Path, run: Path, *pairs: str, method: str = "lora") -> Path:
    """A run of two steps."""
    given = {"model": str(model), "data": str(rows), "method": method}
    return train(run_recipe(SETTINGS, Path(), run, *pairs, **given), quiet=True).run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    rows_file(place / "labels.jsonl", LABELS)
    for name in HEADS:
        checkpoint(place / name, name)
    return place


@pytest.fixture
def labels(place):
    return place / "labels.jsonl"


@pytest.mark.more
def test_every_process_that_loads_a_run_scores_it_the_same(folder, labels):
    runs = [folder(name) for name in RUNS]
    command = (sys.executable, HELPERS / "score_runs.py", labels, *runs)
    there = json.loads(printed(*command, OMP_NUM_THREADS="1").splitlines()[-1])
    assert there == {str(run): evaluate(load_run(run), str(labels)) for run in runs}


@pytest.mark.first
@pytest.mark.parametrize("name", RUNS)
def test_what_a_checkpoint_lacks_of_a_head_is_saved_as_it_was_trained_or_drawn(name, folder):
    run, head = folder(name), HEADS[name.rpartition("-")[0]]
    recipe = load_run(run).recipe
    set_seed(42)
    base, drawn = load_model(recipe.model, TaskHead(2))
    assert head_modules(base, drawn) == head
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    start = dict(base.named_parameters())
    assert drawn == {key for key in start if in_head(key, head)}
    for key in drawn:
        saved = weights[f"base_model.model.{key}"]
        assert torch.equal(saved, start[key]) == name.endswith("frozen"), key
    result = json.loads((run / "result.json").read_text())
    lora = [key for key in weights if "lora_" in key]
    assert result["parameters"]["trainable"] == sum(weights[key].numel() for key in lora)
    assert result["parameters"]["total"] == sum(
        p.numel() for key, p in start.items() if not in_head(key, head)
    )


def test_an_adapter_without_what_its_base_lacks_is_refused(folder, tmp_path):
    run = folder("deberta_v2-trained")
    base, drawn = load_model(load_run(run).recipe.model, TaskHead(2))
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {key: value for key, value in weights.items() if ".pooler." not in key}
    save_file(kept, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"has no pooler\.dense\.bias, nor has its model"):
        load_adapted(base, adapter, drawn)


def test_a_base_whose_head_is_drawn_has_no_scores_of_its_own(folder, labels):
    with pytest.raises(ValueError, match="drawn anew at each load"):
        evaluate(load_run(folder("bert-trained")), str(labels), base=True)


@pytest.fixture
def llama(tmp_path):
    return llama_folder(tmp_path / "llama")


def test_a_model_that_writes_needs_its_whole_checkpoint(llama, tmp_path):
    rows = rows_file(tmp_path / "rows.jsonl")
    AutoModelForCausalLM.from_pretrained(llama).model.save_pretrained(llama)
    with pytest.raises(ValueError, match=r"has no lm_head\.weight, which would be drawn"):
        trained(llama, rows, tmp_path / "run", method="lmam")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2\..* and 8 more of its weights"),
        ({"vocab_size": 300}, r"\.weight as \[259, 32\].* wants \[300, 32\]"),
    ],
)
@pytest.mark.parametrize("form", ["text", "label"])
def test_a_checkpoint_that_its_config_does_not_fit_is_refused(
    form, change, message, llama, labels, tmp_path
):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, **change}))
    rows = labels if form == "label" else rows_file(tmp_path / "rows.jsonl")
    refused(message, lambda: trained(llama, rows, tmp_path / "run", method="lmam"))


def test_weights_of_the_base_that_have_no_place_are_named(llama, caplog):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    load_model(str(llama))
    assert re.search(r"weights such as model\.layers\.1\.\S+ have no place", caplog.text)


NAMED = {"id2label": {0: "POSITIVE", 1: "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}}


def answers(model: Path, names: list) -> list[dict]:
    """Rows labelled with what a classifier says of them already."""
    base = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = byte_tokenizer()
    texts = ["".join(chr(97 + (i * j) % 26) for j in range(3, 9)) for i in range(24)]
    with torch.no_grad():
        found = [int(base(**tokenizer(t, return_tensors="pt")).logits.argmax()) for t in texts]
    assert len(set(found)) > 1
    return [{"text": text, "label": names[i]} for text, i in zip(texts, found, strict=True)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [(NAMED, ["positive", "negative"]), (NAMED, [0, 1]), ({"num_labels": 12}, [*range(12)])],
    ids=["names", "indices", "twelve"],
)
def test_a_head_keeps_the_classes_that_it_knows(changes, names, tmp_path):
    # Weights so large that its answers differ from text to text.
    model = bert_folder(tmp_path / "bert", initializer_range=0.5, **changes)
    rows = rows_file(tmp_path / "rows.jsonl", answers(model, names))
    run = trained(model, rows, tmp_path / "run", "learning_rate=1e-9")
    assert evaluate(load_run(run), str(rows))["accuracy"] == 100


def test_classes_are_in_the_order_of_the_model_or_of_numbers():
    own = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    mnli = ("entailment", "neutral", "contradiction")
    assert class_order(mnli, own) == ("contradiction", "neutral", "entailment")
    assert class_order(("entailment", "neutral"), own) == ("CONTRADICTION", "neutral", "entailment")
    assert class_order(("no", "yes"), own) == ("no", "yes")
    assert class_order(("a", "A"), ("b", "a")) == ("a", "A")
    assert class_order(("0", "2"), own) == ("0", "1", "2")
    assert class_order(("1", "3"), own) == ("1", "3")
    assert class_order((), own) == ()


SCORES = [{"text": row["text"], "score": i / 4} for i, row in enumerate(LABELS)]


@pytest.mark.parametrize(
    ("was", "classes", "rows", "kind", "outputs"),
    [
        ("single_label_classification", 3, SCORES, "regression", 1),
        ("regression", 1, LABELS, "single_label_classification", 2),
        ("multi_label_classification", 2, LABELS, "single_label_classification", 2),
    ],
)
def test_the_rows_say_what_a_head_is_for_and_not_what_it_was(
    was, classes, rows, kind, outputs, tmp_path
):
    model = bert_folder(tmp_path / "bert", problem_type=was, num_labels=classes)
    run = trained(model, rows_file(tmp_path / "rows.jsonl", rows), tmp_path / "run")
    loaded = load_run(run).model
    assert (loaded.config.problem_type, loaded.config.num_labels) == (kind, outputs)
    assert loaded.get_base_model().classifier.out_features == outputs


def test_an_answer_is_the_same_where_config_and_tokenizer_name_other_pads(tmp_path):
    model = llama_folder(tmp_path / "llama")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None  # so it takes its end token, and the config's pad has id 0
    tokenizer.save_pretrained(model)
    rows = rows_file(tmp_path / "rows.jsonl", LABELS)
    for method in ("lora", "full"):
        run = load_run(trained(model, rows, tmp_path / method, method=method))
        assert run.tokenizer.pad_token_id == 2
        export(run.folder, tmp_path / f"{method}-out")
        folder = tmp_path / f"{method}-out"
        exported = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        written = AutoTokenizer.from_pretrained(folder)
        texts = ["ab", "ab" * 6]
        with torch.no_grad():
            alone = [run.model(**run.tokenizer(text, return_tensors="pt")).logits for text in texts]
            for loaded, tokens in ((run.model, run.tokenizer), (exported, written)):
                batch = tokens(texts, padding=True, return_tensors="pt")
                torch.testing.assert_close(loaded(**batch).logits, torch.cat(alone))
