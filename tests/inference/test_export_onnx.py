"""``lorada export --format onnx``: the graph computes what the run does, and says what it takes."""

import json
import re
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from folders import bart_folder, bert_folder, byte_tokenizer, llama_folder, rows_file
from paths import ROOT
from stacks import logits
from test_export import CLASSES
from test_export import train_run as train_in_double
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorada.inference import export
from lorada.inference.generate import generate
from lorada.inference.load import load_run

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is missing: extra onnx")

SHORT_MAP = ["lmam.length=8"]  # prompts are shorter, as long and longer
PROMPTS = ["2 + 2 =", "3", "4 + 1 = 5, 2 + 1 = 3, 0 + 3 =", "1 + 1 ="]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("graphs")
    llama_folder(place / "llama", initializer_range=0.2, num_hidden_layers=1)
    bert_folder(place / "bert", initializer_range=0.2, num_hidden_layers=1)
    bart_folder(place / "bart")
    rows_file(place / "rows.jsonl")
    rows_file(place / "classes.jsonl", CLASSES)
    return place


def train_run(*words, **options):
    """A run in fp32, as a graph computes."""
    return train_in_double(*words, "dtype=float32", **options)


@pytest.fixture(scope="module")
def finished(place):
    """A run with a map, a LoRA and a bottleneck, which has not learned to end texts at once."""
    return train_run(place, place / "run", "lorada_la", *SHORT_MAP, "learning_rate=0.01")


def program_in(page, target):
    """The Python of a page that opens a graph, with the folder of an export."""
    code = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)[-1]
    return re.sub("my-graph|path/to/this/folder", str(target), code)


GUIDE = ROOT / "docs/guides/graphs.md"


@pytest.mark.more
def test_the_graph_of_a_decoder_writes_what_generate_does(finished, tmp_path, json_of):
    target = tmp_path / "graph"
    written = json_of("export", finished, target, "--format", "onnx")
    assert (written["merged"], sorted(written["adapter"])) == (["LORA"], ["BOTTLENECK", "LMAM"])
    names, program = {}, program_in(GUIDE, target)
    imported = set(re.findall(r"^(?:import|from) (\w+)", program, flags=re.M))
    assert imported == {"numpy", "onnxruntime", "transformers"}
    exec(program, names)
    expected = generate(load_run(finished), PROMPTS, 12)
    assert names["generate"](PROMPTS, 12) == expected
    assert len(set(expected)) > 1
    card = (target / "README.md").read_text()
    assert f"ONNX opset {written['opset']}" in card
    assert str(tmp_path).encode() not in (target / "model.onnx").read_bytes()
    assert (target / "generation_config.json").is_file()
    assert b"stack_trace" not in (target / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_graph_of_a_classifier_answers_as_the_run_does(place, tmp_path, works, capsys):
    rows_file(place / "pairs.jsonl", [{**row, "text_pair": row["text"]} for row in CLASSES])
    bert_folder(place / "paired", initializer_range=0.2, num_hidden_layers=1)
    settings = place / "paired" / "tokenizer_config.json"
    inputs = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own tokenizer
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({**known, "model_input_names": inputs}))
    run = train_run(place, tmp_path / "run", "lora+lmam", *SHORT_MAP, model="paired",
                    rows="pairs.jsonl")  # fmt: skip
    target = tmp_path / "graph"
    out, _ = works("export", run, target, "--format", "onnx")
    assert re.search(r"ONNX opset \d+; merged LORA; in the graph LMAM", out)
    assert "logits differ from torch's by at most" in out
    assert f"next: cat {target}/README.md" in out
    assert json.loads((target / "config.json").read_text())["id2label"] == {"0": "even", "1": "odd"}
    names = {}
    exec(program_in(target / "README.md", target), names)
    pairs = [["3 + 1 =", "5"], ["A longer text than the map is.", "And another one."]]
    tokenizer, session = AutoTokenizer.from_pretrained(target), names["session"]
    batch = tokenizer(pairs, return_tensors="np", padding=True)
    batch["token_type_ids"][:, 5:9] = 1  # tokenizers of bytes do not mark a second text
    (logits,) = session.run(["logits"], dict(batch))
    model = load_run(run).model
    for row, found in enumerate(logits):  # alone, without a pad
        kept = batch["attention_mask"][row].astype(bool)
        alone = {name: torch.from_numpy(x[row, kept])[None] for name, x in batch.items()}
        with torch.no_grad():
            expected = model(**alone).logits[0].numpy()
            untyped = model(**{**alone, "token_type_ids": None}).logits[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(logits).max())
        assert np.abs(expected - untyped).max() > 1e-3 * np.abs(logits).max()


def folder_of(path):
    return sorted(p.name for p in path.iterdir()) if path.exists() else []


def test_a_missing_package_is_named_before_anything_is_loaded(
    finished, tmp_path, mistake, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    how = "install the extra `onnx` (pip install -e '.[onnx]' in a checkout of lorada)"
    line = mistake("export", finished, tmp_path / "graph", "--format", "onnx")
    assert line == f"error: onnx is missing: {how}"
    assert folder_of(tmp_path) == []


NO_KERNEL = RuntimeError("NOT_IMPLEMENTED: no kernel\nfor Mul(14)")
IMPOSSIBLE = r"error: transformers \S+ cannot export this llama model to ONNX \("


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_graph_of": Mock(side_effect=NO_KERNEL)},
         r"RuntimeError: NOT_IMPLEMENTED: no kernel for Mul\(14\)\)"),
        pytest.param(
            {"TOLERANCE": 0.0}, "ArithmeticError: its logits differ from torch's by up to",
            marks=pytest.mark.more,
        ),
    ],
    ids=["not traced", "differs"],
)  # fmt: skip
def test_a_graph_that_is_not_the_model_leaves_nothing(
    finished, tmp_path, mistake, monkeypatch, change, message
):
    for name, stand_in in change.items():
        monkeypatch.setattr(export, name, stand_in)
    line = mistake("export", finished, tmp_path / "graph", "--format", "onnx")
    assert re.match(IMPOSSIBLE + message, line)
    assert folder_of(tmp_path) == []


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 2e-4])
def test_a_check_passes_only_below_rounding(difference):
    right = [torch.zeros(2), torch.ones(2)]
    export._difference([torch.full((2,), 9e-5), torch.ones(2)], right)
    with pytest.raises(ArithmeticError, match="differ from torch's"):
        export._difference([torch.tensor([0.0, difference]), torch.ones(2)], right)


def test_an_encoder_decoder_is_refused_in_one_line(place, tmp_path, mistake):
    run = train_run(place, tmp_path / "run", "lora", model="bart")
    line = mistake("export", run, tmp_path / "graph", "--format", "onnx")
    assert "is an encoder–decoder, which is no one graph: export the model without" in line
    assert folder_of(tmp_path) == ["run"]


# model, method, settings, what stays beside the merged weights: each kind of part, form and model.
CASES = [
    ("llama", "lmam", [*SHORT_MAP, "lmam.align=end"], ["LMAM"]),
    ("llama", "lmam", [*SHORT_MAP, "lmam.ablation=no_negative"], ["LMAM"]),
    ("llama", "lmam", [*SHORT_MAP, "lmam.ablation=softmax"], ["LMAM"]),
    ("llama", "fmam", SHORT_MAP, ["LMAM"]),
    ("llama", "omoe", [], ["OMOE"]),
    ("bert", "full", [], []),
    ("gpt2", "prefix", ["prefix.length=3"], ["PREFIX"]),
    ("mistral", "lorada_la", SHORT_MAP, ["BOTTLENECK", "LMAM"]),
    ("gemma2", "lorada_la", SHORT_MAP, ["BOTTLENECK", "LMAM"]),
    ("roberta", "lora", ["pooling=mean"], ["POOLING"]),
    ("deberta", "lmam", SHORT_MAP, ["LMAM"]),
    ("deberta_v2", "series", [], ["BOTTLENECK"]),
]
ENCODERS = ("bert", "roberta", "deberta", "deberta_v2")


def folder_with(place, name):
    """The folder of a tiny model of an architecture."""
    if not (place / name).exists():
        sizes = {"vocab_size": len(byte_tokenizer())}
        config = ARCHITECTURES[name](**sizes).config
        auto = AutoModelForSequenceClassification if name in ENCODERS else AutoModelForCausalLM
        auto.from_config(config).save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([*case[:2], *case[2][-1:]]))
def test_every_kind_of_part_is_in_the_graph(place, tmp_path, json_of, case):
    model, method, settings, left = case
    rows = "classes.jsonl" if model in ENCODERS else "rows.jsonl"
    model = folder_with(place, model)
    run = train_run(place, tmp_path / "run", method, *settings, model=model, rows=rows)
    written = json_of("export", run, tmp_path / "graph", "--format", "onnx")
    assert sorted(written["adapter"]) == left
    if method != "full":  # a part that is missing would differ by what it does
        tuned, inputs = load_run(run).model, {"input_ids": torch.arange(5, 21)[None]}
        with tuned.disable_adapter():
            plain = logits(tuned, inputs)
        assert written["difference"] < 1e-3 * (logits(tuned, inputs) - plain).abs().max()
