"""``lorada export``: what comes out computes what the run did, loaded as any user would."""

import errno
import json
import re
import shutil
import sys
from unittest.mock import Mock

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import assert_close
from folders import ROWS, bart_folder, bert_folder, byte_tokenizer, llama_folder, rows_file
from huggingface_hub import ModelCard
from paths import HELPERS
from peft import PeftModel, get_peft_model
from programs import printed
from stacks import logits, lora
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorada import LoradaConfig
from lorada.inference.export import copy_licence
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

pytestmark = pytest.mark.fp64

# A rate at which a few steps change every logit.
TINY = [
    "training.per_device_train_batch_size=8", "training.report_to=[]", "max_steps=4",
    "max_length=32", "learning_rate=0.1", "max_grad_norm=0", "dtype=float64",
]  # fmt: skip
CLASSES = [{"text": row["prompt"], "label": "even" if i % 2 else "odd"} for i, row in
           enumerate(ROWS)]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    llama_folder(place / "llama", initializer_range=0.2)
    (place / "llama" / "LICENSE").write_text("Apache License")
    bert_folder(place / "bert")
    bart_folder(place / "bart", ends=True)
    for name in ("roberta", "deberta_v2"):
        model = ARCHITECTURES[name](vocab_size=len(byte_tokenizer()), max_position_embeddings=64)
        AutoModelForSequenceClassification.from_config(model.config).save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    rows_file(place / "rows.jsonl")
    rows_file(place / "classes.jsonl", CLASSES)
    return place


def train_run(place, output, method, *more, model="llama", rows="rows.jsonl", **options):
    fixed = {"method": method, "model": str(place / model), "data": str(place / rows)}
    recipe = load_recipe(None, [*TINY, *more], {**fixed, "output": str(output), **options})
    return train(recipe, quiet=True).run


@pytest.fixture(scope="module")
def finished(place):
    """A run with a map, a LoRA and a bottleneck; copy it before changing it."""
    return train_run(place, place / "run", "lorada_la")


def inputs():
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    tokens = torch.randint(5, 90, (3, 12))
    tokens[:, -1] = 2  # where BART's head looks
    return {"input_ids": tokens, "attention_mask": mask}


LORA_Q = ["lora.target_modules=[q_proj,down_proj]"]
# method -> (settings, what is merged, what stays an adapter)
DECODERS = {
    "dora": (LORA_Q, ["LORA"], []),
    "lorada_la": ([], ["LORA"], ["LMAM", "BOTTLENECK"]),
    # Parts around modules that no weight can hold: then nothing is merged.
    "beft": ([], [], ["BEFT"]),
    "lily": (["lily.target_modules=[q_proj]"], [], ["LILY"]),
    "omoe": ([], [], ["OMOE"]),
    "lora+lily+lmam": (LORA_Q, [], ["LORA", "LILY", "LMAM"]),
    "full": ([], [], []),
}
CLASSIFIERS = {
    "beft": ([], ["BEFT"], []),  # BERT's values have a bias
    "lora+lmam": ([], ["LORA"], ["LMAM"]),
    # Norms that train are the base's in the end, as weights are.
    "sora+lmam": (["sora.modules_to_save=[output.LayerNorm]"], ["SORA"], ["LMAM"]),
    "bitfit": ([], [], []),
}
# Heads of several modules, and a method whose ranks are pruned.
OTHERS = {"roberta": "lora", "bart": "lora", "deberta_v2": "adalora"}
CASES = [
    *(("llama", "rows.jsonl", AutoModelForCausalLM, m, *case) for m, case in DECODERS.items()),
    *(("bert", "classes.jsonl", AutoModelForSequenceClassification, m, *case)
      for m, case in CLASSIFIERS.items()),
    *((model, "classes.jsonl", AutoModelForSequenceClassification, m, [], [m.upper()], [])
      for model, m in OTHERS.items()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[3]}-{case[0]}")
def test_an_exported_model_computes_what_the_run_did(place, tmp_path, json_of, case):
    model, rows, auto, method, settings, merged, left = case
    run = train_run(place, tmp_path / "run", method, *settings, model=model, rows=rows)
    batch, target = inputs(), tmp_path / "exported"
    expected = logits(load_run(run).model, batch)
    written = json_of("export", run, target)
    assert written["merged"] == merged
    assert sorted(written["adapter"]) == sorted(left)
    assert (target / "adapter_config.json").exists() == bool(left)

    exported = auto.from_pretrained(target)
    assert_close(logits(exported, batch), expected)
    if rows == "classes.jsonl":
        assert exported.config.id2label == {0: "even", 1: "odd"}
        assert exported.config.label2id == {"even": 0, "odd": 1}
    # The method did something, so equal is not for nothing.
    start = auto.from_pretrained(place / model, num_labels=2)
    assert not torch.allclose(logits(start, batch), expected, atol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(target)
    before = AutoTokenizer.from_pretrained(place / model)
    assert tokenizer("2 + 2 =")["input_ids"] == before("2 + 2 =")["input_ids"]
    assert tokenizer.pad_token == "<p>"


def test_that_nothing_is_merged_is_said_with_the_reason(place, tmp_path, works, caplog):
    run = train_run(place, tmp_path / "run", "lora", "lora.lora_bias=true", *LORA_Q)
    out, _ = works("export", run, tmp_path / "out")
    assert "merged nothing; adapter of LORA" in out
    (said,) = [r.getMessage() for r in caplog.records if "merged" in r.getMessage()]
    assert said.startswith("nothing is merged: lora_bias=True cannot be merged into model.layers.0")
    batch = inputs()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(logits(model, batch), logits(load_run(run).model, batch))


@pytest.mark.more
def test_parts_around_one_module_load_with_peft_too(place, tmp_path, works):
    run = train_run(place, tmp_path / "run", "ia3+lily", "lily.target_modules=[v_proj]")
    works("export", run, tmp_path / "out")
    batch = inputs()
    expected = logits(load_run(run).model, batch)
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), batch), expected)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", adapter_kwargs={"subfolder": "none"}
    )
    assert not torch.allclose(logits(base, batch), expected, atol=1e-2)
    assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "out"), batch), expected)


@pytest.mark.more
def test_a_part_that_only_peft_can_load_is_refused_beside_a_base(place, tmp_path, mistake):
    run = train_run(place, tmp_path / "run", "vera+lily", "vera.target_modules=[q_proj]")
    line = mistake("export", run, tmp_path / "out")
    assert "VeraConfig keeps weights outside" in line
    assert "only PEFT" in line
    assert not (tmp_path / "out").exists()


ALONE = """
import json, sys
sys.modules["lorada"] = sys.modules["peft"] = None  # any import of them is an ImportError
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, sys.argv[2])
from in_double import in_double

with torch.no_grad(), in_double():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    print(json.dumps(model(torch.arange(5, 25)[None]).logits.tolist()))
"""


@pytest.mark.more
def test_a_module_that_was_saved_whole_is_in_the_exported_base(place, tmp_path, call):
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    stack = LoradaConfig(parts=[lora("llama")], modules_to_save=["lm_head"])
    get_peft_model(base, stack).save_pretrained(tmp_path / "start")
    run = train_run(place, tmp_path / "run", "lmam", from_adapter=str(tmp_path / "start"))
    batch = inputs()
    call("export", run, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(logits(model, batch), logits(load_run(run).model, batch))
    assert not torch.equal(model.lm_head.weight, base.lm_head.original_module.weight)


def loaded_by_card(folder):
    """The model that the Python of a folder's card loads."""
    code = "".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S))
    names = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    return names["model"]


@pytest.mark.more
def test_an_empty_folder_behind_a_link_is_filled_and_its_card_loads_the_trained_model(
    place, finished, tmp_path, works
):
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    works("export", finished, link)
    assert link.is_symlink()
    batch = inputs()
    assert_close(logits(loaded_by_card(there), batch), logits(load_run(finished).model, batch))
    for folder, library in ((finished / "adapter", "peft"), (there, "transformers")):
        card = ModelCard.load(folder / "README.md")
        assert card.data.base_model == str(place / "llama")
        assert (card.data.library_name, card.data.tags) == (library, ["lorada", "lorada_la"])
    assert (there / "LICENSE").read_text() == "Apache License"
    assert "vLLM needs the package lorada-vllm" in (there / "README.md").read_text()


@pytest.mark.more
def test_a_plain_export_says_nothing_of_an_adapter_and_loads_where_there_is_no_lorada(
    place, tmp_path, works
):
    run = train_run(place, tmp_path / "run", "lora")
    out, _ = works("export", run, tmp_path / "out")
    assert out.replace("\n", "").endswith(f"next: cat {tmp_path / 'out'}/README.md")
    assert "import lorada" not in (tmp_path / "out" / "README.md").read_text()
    expected = logits(load_run(run).model, {"input_ids": torch.arange(5, 25)[None]})
    found = json.loads(printed(sys.executable, "-c", ALONE, tmp_path / "out", HELPERS))
    assert_close(torch.tensor(found), expected)


def test_a_folder_that_is_taken_is_refused_and_left_alone(finished, tmp_path, mistake):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "out is not empty" in mistake("export", finished, tmp_path / "out")
    assert "is a file" in mistake("export", finished, tmp_path / "out" / "mine.txt")
    for inside in (".", "model", "a/b"):
        assert "lies in the run itself" in mistake("export", finished, finished / inside)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.fp64(False)
@pytest.mark.parametrize("method", ["lorada_la", "lmam"])
def test_a_half_precision_base_keeps_its_dtype_and_rounding_is_said(
    place, tmp_path, works, caplog, method
):
    run = train_run(place, tmp_path / "run", method, "dtype=bfloat16")
    works("export", run, tmp_path / "out")
    assert ("rounded" in caplog.text) == (method == "lorada_la")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    if method == "lmam":  # nothing is merged, so nothing is rounded
        batch, exported = inputs(), model
        assert torch.equal(logits(exported, batch), logits(load_run(run).model, batch))


def test_the_texts_of_a_licence_go_with_the_weights(tmp_path):
    (tmp_path / "base").mkdir()
    names = ["LICENSE", "LICENSE.md", "NOTICE.txt", "USE_POLICY.md"]
    for name in (*names, "config.json"):
        (tmp_path / "base" / name).write_text(name)
    (tmp_path / "out").mkdir()
    copy_licence(str(tmp_path / "base"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_an_export_ends_its_texts_as_the_base_does_and_as_the_run_has_learned(
    finished, tmp_path, works, monkeypatch
):
    run = load_run(finished)
    run.model.generation_config.eos_token_id = 7  # of the base; rows end with the tokenizer's
    monkeypatch.setattr("lorada.inference.export.load_run", lambda *given, **options: run)
    works("export", finished, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [7, run.tokenizer.eos_token_id]


def test_an_export_that_fails_at_its_end_leaves_nothing(finished, tmp_path, mistake, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("lorada.inference.export.write_model_card", full)
    assert "No space left" in mistake("export", finished, tmp_path / "to" / "out")
    assert not [*tmp_path.rglob("out*")]


@pytest.mark.fp64(False)
def test_a_quantised_base_is_refused(finished, tmp_path, mistake, monkeypatch):
    run = load_run(finished)
    run.model.get_base_model().config.quantization_config = {"quant_method": "bitsandbytes"}
    monkeypatch.setattr("lorada.inference.export.load_run", lambda *given, **options: run)
    assert "llama is quantised" in mistake("export", finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.more
def test_the_card_of_an_adapter_loads_a_head_of_three_classes(place, tmp_path):
    three = [{"text": row["prompt"], "label": "abc"[i % 3]} for i, row in enumerate(ROWS)]
    rows_file(place / "three.jsonl", three)
    run = train_run(place, tmp_path / "run", "lora+lmam", model="bert", rows="three.jsonl")
    model, batch = loaded_by_card(shutil.copytree(run / "adapter", tmp_path / "shared")), inputs()
    assert isinstance(model, PeftModel)
    assert_close(logits(model, batch), logits(load_run(run).model, batch))


def test_a_fully_trained_model_with_a_pooling_is_marked_and_loads(place, tmp_path, json_of):
    rows, settings = "classes.jsonl", ["pooling=mean"]
    run = train_run(place, tmp_path / "run", "full", *settings, model="bert", rows=rows)
    assert json_of("export", run, tmp_path / "out")["adapter"] == ["POOLING"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "lorada"
    batch, auto = inputs(), AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path / "out")
    assert_close(logits(model, batch), logits(load_run(run).model, batch))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == str(place / "bert")
    assert "lorada-vllm" not in card.text  # which refuses classifiers
