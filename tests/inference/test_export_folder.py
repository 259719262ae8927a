"""One folder with base, tokenizer and adapter: whoever loads it gets all of it, or an error.

The folders are moved before anything is loaded from them.
"""

import json
import shutil
import sys
import types
from functools import partialmethod

import pytest
import torch
from conftest import assert_close
from folders import bart_folder, bert_folder, llama_folder, refused, rows_file
from paths import HELPERS
from peft import AutoPeftModelForCausalLM, PeftModel
from programs import printed
from safetensors.torch import load_file, save_file
from stacks import logits
from test_export import CLASSES, inputs, train_run
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from lorada.inference.export import export
from lorada.inference.exported_config import READERS
from lorada.inference.load import load_run

pytestmark = pytest.mark.fp64
# Kind -> its rows, its method with settings, the class that loads it, and a pipeline.
KINDS = {
    "llama": ("rows.jsonl", "lorada_la", [], "AutoModelForCausalLM", "text-generation"),
    "bert": ("classes.jsonl", "lora+lmam", [], "AutoModelForSequenceClassification",
             "text-classification"),
    "bart": ("rows.jsonl", "lorada_a", ["lmam.heads=2"], "AutoModelForSeq2SeqLM", None),
}  # fmt: skip

LOADS = """
import json, sys
if "without peft" in sys.argv:
    sys.modules["peft"] = None  # any import of it is an ImportError
from pathlib import Path
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, sys.argv[3])
from in_double import in_double

place, kinds, found = Path(sys.argv[1]), json.loads(sys.argv[2]), {}
for kind, (auto, task) in kinds.items():
    folder = place / kind
    batch = load_file(place / f"{kind}-batch.safetensors")
    loads = {"auto": getattr(transformers, auto).from_pretrained}
    if task is not None:
        loads["pipeline"] = lambda folder: transformers.pipeline(task, model=str(folder)).model
    alone = {"adapter_kwargs": {"subfolder": "none"}}
    loads["base"] = lambda folder: getattr(transformers, auto).from_pretrained(folder, **alone)
    for name, load in loads.items():
        try:
            with in_double():
                logits = load(folder).eval()(**batch).logits.detach()
            save_file({"logits": logits}, place / f"{kind}-{name}.safetensors")
        except Exception as error:
            found[f"{kind}-{name}"] = f"{type(error).__name__}: {error}"
assert ("lorada" in sys.modules) == ("known" in sys.argv)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Where the moved folders are, and what each run computes on a batch beside its folder."""
    place, moved = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("moved")
    llama_folder(place / "llama", initializer_range=0.2)
    bert_folder(place / "bert", initializer_range=0.2)
    bart_folder(place / "bart", init_std=0.2)
    rows_file(place / "rows.jsonl")
    rows_file(place / "classes.jsonl", CLASSES)
    expected = {}
    for kind, (rows, method, settings, _, _) in KINDS.items():
        run = train_run(place, place / f"{kind}0", method, *settings, model=kind, rows=rows)
        with pytest.MonkeyPatch.context() as patch:
            if kind == "bart":  # as a large model, its weights are in several files
                save = partialmethod(PreTrainedModel.save_pretrained, max_shard_size="20KB")
                patch.setattr(PreTrainedModel, "save_pretrained", save)
            export(run, place / "out")
        assert (len([*(place / "out").glob("model-*.safetensors")]) > 1) == (kind == "bart")
        (place / "out").rename(moved / kind)
        batch = inputs()
        if kind == "bart":
            batch["decoder_input_ids"] = torch.randint(5, 90, (3, 6))
        save_file(batch, moved / f"{kind}-batch.safetensors")
        expected[kind] = logits(load_run(run).model, batch)
    shutil.rmtree(place / "out", ignore_errors=True)
    return moved, expected


def fresh(place, *how):
    """Load every folder in a process of its own; how each attempt ended that did not end well."""
    kinds = {kind: KINDS[kind][3:] for kind in KINDS}
    python = [sys.executable, "-c", LOADS, place, json.dumps(kinds), HELPERS, *how]
    if "known" in how:
        python = [sys.executable, "-m", "lorada.cli", "run", *python]
    return json.loads(printed(*python).splitlines()[-1])


def batch_of(place, kind):
    return load_file(place / f"{kind}-batch.safetensors")


@pytest.mark.more
def test_started_by_lorada_run_every_way_to_load_gives_what_the_run_computed(exported):
    place, expected = exported
    assert fresh(place, "known") == {}
    for kind, (*_, task) in KINDS.items():
        for way in ("auto", "pipeline") if task else ("auto",):
            saved = load_file(place / f"{kind}-{way}.safetensors")["logits"]
            assert_close(saved, expected[kind])
        alone = load_file(place / f"{kind}-base.safetensors")["logits"]
        assert not torch.allclose(alone, expected[kind], atol=1e-3), kind


@pytest.mark.more
@pytest.mark.parametrize("how", ["with peft", "without peft"])
def test_without_lorada_every_way_to_load_it_ends_in_an_error_that_names_it(exported, how):
    place, _ = exported
    found = fresh(place, how)
    for way, error in found.items():
        assert error.startswith("ValueError: "), way
        assert "model type `lorada`" in error, way
    ways = {f"{kind}-{way}" for kind in KINDS for way in ("auto", "pipeline", "base")}
    assert found.keys() == ways - {"bart-pipeline"}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_reads_what_its_plugin_makes_of_it_and_without_one_is_refused(
    exported, engine, monkeypatch
):
    place, _ = exported
    monkeypatch.setitem(sys.modules, engine, types.ModuleType(engine))
    with pytest.raises(ValueError, match=f"{engine} would serve .* without its lorada adapter"):
        AutoConfig.from_pretrained(place / "llama")

    def read(config, folder):
        assert config["model_type"] == "lorada"
        return {**config, "base_architectures": ["Own"], "read_from": folder}

    monkeypatch.setitem(READERS, engine, read)
    config = AutoConfig.from_pretrained(place / "llama")
    assert (config.model_type, config.architectures) == ("llama", ["Own"])
    assert config.read_from == str(place / "llama")


def test_the_class_of_the_base_reads_it_too_and_its_adapter_is_not_placed_again(exported):
    place, expected = exported
    model = LlamaForCausalLM.from_pretrained(place / "llama")
    message = r"adapter 'default' already.*'subfolder': 'none'"
    refused(message, lambda: PeftModel.from_pretrained(model, place / "llama"))
    assert_close(logits(model, batch_of(place, "llama")), expected["llama"])


def test_where_transformers_looks_for_the_base_elsewhere_the_error_says_where_it_is(
    exported, tmp_path
):
    place, _ = exported
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(place / "llama" / name, tmp_path)
    for auto in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
        with pytest.raises(OSError, match="the base is beside this adapter"):
            auto.from_pretrained(tmp_path)


def test_nothing_in_the_folder_names_where_it_was_written(exported):
    place, _ = exported
    for path in place.glob("*/*.json"):
        assert "made0" not in path.read_text(), path
    assert sorted(path.name for path in (place / "llama").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_such_a_folder_is_refused_as_the_base_of_a_run(exported, tmp_path, mistake):
    place, _ = exported
    rows_file(tmp_path / "rows.jsonl")
    for method in ("lora", "full"):
        line = mistake(
            "train", "--method", method, "--model", place / "llama", "--data",
            tmp_path / "rows.jsonl", "--output", tmp_path / "run",
        )  # fmt: skip
        assert "holds an adapter beside its base" in line
        assert not (tmp_path / "run").exists()
