"""A method of one part of PEFT is saved as that part: programs without lorada take its runs."""

import json
import re
import sys

import pytest
import test_export
import torch
from conftest import assert_close
from paths import HELPERS
from programs import printed
from safetensors.torch import load_file, save_file
from stacks import logits
from transformers import AutoModelForCausalLM

from lorada import METHODS
from lorada.inference.load import load_run
from lorada.methods.lookup import method_named
from lorada.support.tuner_names import TUNERS

pytestmark = pytest.mark.fp64
place, SETTINGS = test_export.place, test_export.TINY

SAVES_WHOLE = "lora.modules_to_save=[norm]"
# Run → model, method, rows, and settings of its own.
RUNS = {
    **{name: ("llama", name, "rows", []) for name in (
        "lora", "dora", "loraplus", "lorafa", "ist", "shira", "longlora", "adalora", "ia3", "vera",
        "oft", "ln_tuning", "lily", "vblora", "randlora",
    )},
    "whole_norm": ("llama", "lora", "rows", [SAVES_WHOLE]),
    "head": ("bert", "lora", "classes", []),
    "pruned_head": ("bert", "adalora", "classes", []),
    "decoder_head": ("llama", "dora", "classes", []),
    "seq2seq": ("bart", "lora", "rows", []),
    "seq2seq_head": ("bart", "ia3", "classes", []),
}  # fmt: skip
AUTO = {"rows": "CausalLM", "classes": "SequenceClassification", "seq2seq": "Seq2SeqLM"}
PEFT_TYPES = dict.fromkeys(("dora", "loraplus", "lorafa", "ist", "longlora"), "LORA")


def inputs(name):
    tokens = torch.arange(5, 29).reshape(2, 12)
    tokens[:, -1] = 2  # where BART's head looks
    found = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return found | ({"decoder_input_ids": tokens[:, :4].clone()} if name == "seq2seq" else {})


ALONE = """
import json, sys, warnings
sys.modules["lorada"] = None  # any import of it is an ImportError
sys.path.insert(0, sys.argv[1])
import peft, torch, transformers
from in_double import in_double
from safetensors.torch import load_file

warnings.filterwarnings("error", "Unexpected keyword")  # of a newer PEFT, it would say
for name, (folder, auto, given) in json.loads(sys.argv[2]).items():
    with torch.no_grad(), in_double():
        tensors = load_file(given)
        expected = tensors.pop("logits")
        load = getattr(peft, f"AutoPeftModelFor{auto}").from_pretrained
        classes = {"num_labels": 2} if auto.startswith("Seq") and auto != "Seq2SeqLM" else {}
        model = load(folder, **classes).eval()
        if model.config.pad_token_id is None or classes:
            model.config.pad_token_id = 0
        found = model(**tensors).logits
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9, msg=name)
        assert not model.peft_type.startswith("LORADA")
"""


def test_every_such_method_of_ours_is_here():
    ones = {name for name, method in METHODS.items() if len(method_named(name).part_names) == 1}
    own = {*TUNERS, "pa_attn", "parallel_ffn"}
    plain = {name for name in ones if not own & set(method_named(name).part_names)}
    assert plain == {
        "lora", "dora", "loraplus", "lorafa", "ist", "shira", "longlora", "adalora",
    }  # fmt: skip
    assert plain < RUNS.keys()


@pytest.mark.more
def test_a_process_without_lorada_loads_the_adapters_of_runs(place, folder):
    plain = logits(AutoModelForCausalLM.from_pretrained(place / "llama"), inputs("lora"))
    asked = {}
    for name, (model, method, rows, _) in RUNS.items():
        run = folder(name)
        adapter = run / "adapter"
        config = json.loads((adapter / "adapter_config.json").read_text())
        for saved in run.rglob("adapter_config.json"):  # of checkpoints too
            found = json.loads(saved.read_text())["peft_type"]
            assert found == PEFT_TYPES.get(method, method.upper())
        assert config["base_model_name_or_path"] == str(place / model)
        auto = AUTO["seq2seq" if name == "seq2seq" else rows]
        kind = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}
        assert config["task_type"] == kind.get(auto, "SEQ_2_SEQ_LM")
        assert "lorada`" not in (adapter / "README.md").read_text()
        batch, given = inputs(name), place / f"{name}.safetensors"
        tuned = logits(load_run(run).model, batch)
        if model == "llama" and rows == "rows":  # the method did something
            assert not torch.allclose(tuned, plain)
        save_file({**batch, "logits": tuned}, given)
        asked[name] = (str(adapter), auto, str(given))
    printed(sys.executable, "-c", ALONE, HELPERS, json.dumps(asked))


def test_llama_cpp_finds_what_its_converter_reads(place, folder, works):
    """As convert_lora_to_gguf.py of llama.cpp does: the keys, and pairs of matrices by name."""
    works("export", folder("lora"), place / "merged")
    adapter = folder("lora") / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert not any(config[key] for key in ("use_dora", "use_rslora", "modules_to_save"))
    base = json.loads((place / "llama" / "config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "llama")
    assert base["architectures"] == ["LlamaForCausalLM"]

    pairs = {}
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        matrix = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        assert matrix is not None, name  # anything else ends the converter
        pairs.setdefault(f"{matrix[1]}.weight", {})[matrix[2]] = tensor
    assert {name.split(".")[-2] for name in pairs} == set(config["target_modules"])
    weights, merged = (
        load_file(place / name / "model.safetensors") for name in ("llama", "merged")
    )
    for name, pair in pairs.items():
        assert (len(pair["A"]), pair["B"].shape[1]) == (config["r"], config["r"])
        change = config["lora_alpha"] / config["r"] * pair["B"] @ pair["A"]
        assert_close(weights[name].double() + change, merged[name].double())
