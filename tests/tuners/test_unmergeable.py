"""LoRA that no weight can hold: merging it is refused, and nothing is changed."""

import pytest
import torch
from conftest import TINY, assert_close
from folders import llama_folder, refused, rows_file
from peft import LoraConfig
from stacks import batch, lmam, logits, moved

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

# Setting of LoRA -> what the error says of it.
SETTINGS = {
    "lora_bias": (True, "lora_bias=True cannot be merged into model.layers.0.self_attn.q_proj"),
    "alora_invocation_tokens": ([7], r"alora_invocation_tokens=\[7\] changes only what follows"),
    "layer_replication": ([[0, 2], [1, 2]], "layer_replication makes layers that share"),
}


def lora_with(name, value):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **{name: value})


@pytest.mark.parametrize("name", SETTINGS)
def test_what_no_weight_can_say_is_refused_and_left_as_it_is(name):
    value, message = SETTINGS[name]
    for parts in ([lora_with(name, value)], [lmam(), lora_with(name, value)]):
        model = moved(TINY["llama"](), LoradaConfig(parts=parts, task_type="CAUSAL_LM"))
        inputs = batch("llama")
        expected = logits(model, inputs)
        for merge in (model.merge_and_unload, model.merge_weights, model.merge_adapter):
            refused(f"{message}.*keep it as an adapter$", merge)
        assert_close(logits(model, inputs), expected)
        assert len(model.peft_config["default"].parts) == len(parts)


def test_a_bias_is_merged_where_the_base_has_one():
    lora = LoraConfig(r=2, target_modules=["query"], lora_bias=True)
    model = moved(TINY["bert"](), LoradaConfig(parts=[lora]))
    inputs = batch("bert")
    expected = logits(model, inputs)
    assert any("lora_B.default.bias" in name for name, _ in model.named_parameters())
    merged = model.merge_and_unload()
    assert_close(logits(merged, inputs), expected)
    assert not torch.equal(
        merged.bert.encoder.layer[0].attention.self.query.bias,
        TINY["bert"]().bert.encoder.layer[0].attention.self.query.bias,
    )


@pytest.mark.parametrize("name", ["alora_invocation_tokens", "layer_replication"])
def test_exporting_it_is_refused_before_anything_is_written(name, tmp_path, works, mistake):
    value, message = SETTINGS[name]
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "rows.jsonl")
    fixed = ("train", "--method", "lora", "--model", tmp_path / "llama", "--data",
             tmp_path / "rows.jsonl", "--output", tmp_path / "run")  # fmt: skip
    small = ("max_steps=1", "max_length=16", "training.report_to=[]")
    works(*fixed, *small, f"lora.{name}={value}")
    assert message.replace("\\", "") in mistake("export", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
