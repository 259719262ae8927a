"""Model folders that are damaged or do not belong together end in one line, whatever is wrong."""

import json

import pytest
from folders import bert_folder, llama_folder, refused, rows_file
from transformers import AutoTokenizer

from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

LABELS = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(8)]
KINDS = {"llama": llama_folder, "bert": bert_folder}
QUICK = ["max_steps=1", "per_device_train_batch_size=2", "report_to=[]", "save_strategy=no"]
CONTENTS = {"object": b"{}", "null": b"null", "no text": b"\xff\xfe\x00a"}
CONFIGS = {
    "num_attention_heads": [3, 0, -1, None, "x"],
    "hidden_size": [33, 0, "a"],
    "num_hidden_layers": ["2"],
    "vocab_size": [10, "x", 0],
    "max_position_embeddings": ["x", None],
    "model_type": ["nonsense", 5, None],
    "pad_token_id": [9999, "a"],
    "hidden_act": ["nope", 3],
    "dtype": ["float99"],
    "id2label": [[], {"a": "b"}, 5],
    "architectures": [5, [5]],
    "rope_parameters": [5],
}
OURS = (ValueError, OSError, ImportError)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def attempt(kind, folder, rows, run):
    """Train on a model folder; the line of its error, None if there is none."""
    options = {"method": "lmam", "model": str(folder), "data": str(rows), "output": str(run)}
    try:
        train(load_recipe(None, QUICK, options), quiet=True, overwrite=True)
    except OURS as error:
        return " ".join(str(error).split())
    return None


@pytest.fixture
def rows(kind, tmp_path):
    return rows_file(tmp_path / "rows.jsonl", LABELS if kind == "bert" else None)


def test_every_file_of_a_model_folder_may_be_damaged(kind, rows, tmp_path):
    folder = KINDS[kind](tmp_path / kind)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        half = {"half": whole[: len(whole) // 2], "flipped": whole[:99] + b"U" + whole[100:]}
        for content in {**CONTENTS, **half}.values():
            path.write_bytes(content)
            attempt(kind, folder, rows, tmp_path / "run")  # any other exception fails here
        path.unlink()
        attempt(kind, folder, rows, tmp_path / "run")
        path.write_bytes(whole)
    assert attempt(kind, folder, rows, tmp_path / "run") is None


def test_every_setting_of_a_models_config_may_be_wrong(kind, rows, tmp_path):
    folder = KINDS[kind](tmp_path / kind)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, values in CONFIGS.items():
        for value in values:
            path.write_text(json.dumps({**config, key: value}))
            message = attempt(kind, folder, rows, tmp_path / "run")
            if not (kind == "bert" and key == "rope_parameters"):
                assert message, (key, value)
                assert str(folder) in message, message


def grown(folder):
    """Give the tokenizer of a model folder more tokens than the model has embeddings for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "1 +"])
    tokenizer.save_pretrained(folder)


def test_a_token_without_an_embedding_is_named_once_it_is_met(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    grown(folder)
    rows = rows_file(tmp_path / "rows.jsonl")
    message = attempt("llama", folder, rows, tmp_path / "run")
    assert "'1 +' as token 260, but the model has embeddings for 259 tokens" in message
    others = rows_file(tmp_path / "others.jsonl", [{"prompt": "a", "response": "b"}] * 4)
    assert attempt("llama", folder, others, tmp_path / "run") is None
    run = load_run(tmp_path / "run")
    assert len(generate(run, ["ab"])) == 1
    refused("'<image>' as token 259", lambda: generate(run, ["a<image>"]))
