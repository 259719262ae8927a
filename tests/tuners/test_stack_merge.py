"""What cannot be merged says so, what can is merged, and AdaLoRA prunes."""

import pytest
import torch
from conftest import TINY, assert_close
from folders import llama_folder, refused, rows_file
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file
from stacks import (
    BESIDE,
    MODELS,
    QUERY,
    adalora,
    assert_loads,
    batch,
    config_of,
    ia3,
    lmam,
    logits,
    lora,
    moved,
    randomise,
    trained,
)

from lorada import LoradaConfig, SoraConfig

pytestmark = pytest.mark.fp64


def test_the_adapter_to_be_merged_is_checked_and_not_the_active_one():
    inputs = batch("llama")
    model = moved(TINY["llama"](), LoradaConfig(parts=[lora("llama")]), "plain")
    model.add_adapter("mapped", LoradaConfig(parts=[lora("llama"), lmam()]))
    randomise(model.eval(), "mapped")
    expected = logits(model, inputs)
    for merge in (model.merge_and_unload, model.merge_adapter):
        refused("parts of LmamConfig cannot be merged", lambda m=merge: m(adapter_names=["mapped"]))
        refused("unknown adapter 'map'", lambda m=merge: m(adapter_names=["map"]))
    assert_close(logits(model, inputs), expected)

    model.base_model.set_adapter(["mapped"])
    assert_close(logits(model.merge_and_unload(adapter_names=["plain"]), inputs), expected)


class Packed(torch.nn.Parameter):
    """A weight that no delta can be added to, as quantised ones are."""


def test_a_refused_merge_weights_leaves_the_stack_as_it_was(tmp_path):
    base = TINY["llama"]()
    layer = base.model.layers[1].self_attn
    layer.v_proj.weight = Packed(layer.v_proj.weight)
    model = moved(base, LoradaConfig(parts=[SoraConfig(rank=2), lmam()]))
    inputs = batch("llama")
    expected = logits(model, inputs)
    refused("Linear is quantised, which merging does not support", model.merge_weights)
    assert_close(logits(model, inputs), expected)
    assert_loads(model, TINY["llama"](), tmp_path, inputs)


def test_a_merge_weights_that_fails_half_way_leaves_the_config_its_parts(monkeypatch):
    model = trained("lora", "llama")
    wrapped = model.base_model.model.model.layers[0].self_attn.q_proj

    def fail(**options):
        raise NotImplementedError("no")

    monkeypatch.setattr(wrapped, "merge", fail)
    refused("this adapter cannot be merged into the weights: no", model.merge_weights)
    kinds = [part.peft_type.value for part in model.peft_config["default"].parts]
    assert kinds == ["LMAM", "LORA", "BOTTLENECK"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stack", BESIDE)
def test_merged_weights_and_the_rest_compute_what_the_stack_did(stack, name, tmp_path):
    inputs, model = batch(name), trained(stack, name)
    expected, base = logits(model, inputs), TINY[name]()
    rest = model.merge_weights()

    assert_close(logits(rest, inputs), expected)
    kinds = [part.peft_type.value for part in rest.peft_config["default"].parts]
    assert kinds == ["LMAM", "BOTTLENECK"]

    # The merged base is an ordinary model, the rest an ordinary adapter on it.
    rest.peft_config["default"].base_model_name_or_path = str(tmp_path / "merged")
    rest.save_pretrained(tmp_path / "rest")
    assert all("lora_A" not in key for key in load_file(next(tmp_path.glob("rest/*.safetensors"))))
    merged = rest.unload()
    merged.save_pretrained(tmp_path / "merged")
    again = type(base).from_pretrained(tmp_path / "merged")
    assert again.state_dict().keys() == base.state_dict().keys()
    loaded = PeftModel.from_pretrained(again, tmp_path / "rest")
    assert_close(logits(loaded, inputs), expected)


@pytest.mark.parametrize("names", [["lora"], ["lora", "lmam"], ["lmam"]], ids="+".join)
def test_what_was_merged_is_not_lost_by_saving(names, tmp_path):
    parts = {"lora": lora("llama"), "lmam": lmam()}
    model = moved(TINY["llama"](), LoradaConfig(parts=[parts[name] for name in names]))
    rest = model.merge_weights()
    said = r"merged .* `lorada export RUN DIR`.*merge_and_unload\(\) .*\.unload\(\)"
    refused(said, lambda: model.save_pretrained(tmp_path / "lost"))
    if names == ["lora", "lmam"]:
        refused(said, lambda: rest.save_pretrained(tmp_path / "lost"))
    else:  # the whole base, or a map over the base as it was
        rest.save_pretrained(tmp_path / "rest")
    assert not (tmp_path / "lost").exists()


def test_adalora_in_a_stack_gets_its_orthogonality_loss_in_training_only():
    """In a held-out loss, a search for a learning rate would weigh it too."""
    inputs, model = batch("llama"), trained("adalora", "llama", task_type="CAUSAL_LM")
    inputs["labels"] = inputs["input_ids"]

    with torch.no_grad():
        plain = model.get_base_model()(**inputs).loss
        assert_close(model(**inputs).loss, plain)
        added = model.train()(**inputs).loss - plain
    factors = [p.detach() for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    grams = [p @ p.T if p.shape[0] < p.shape[1] else p.T @ p for p in factors]
    distance = sum(torch.norm(gram - torch.eye(len(gram))) for gram in grams) / len(grams)
    assert len(factors) == 8
    assert_close(added, 0.5 * distance)


def pruned(tmp_path, seed: int) -> torch.Tensor:
    """Train a stack with AdaLoRA for its ten steps, save it pruned, and return its logits."""
    torch.manual_seed(seed)
    model = trained("adalora", "llama", task_type="CAUSAL_LM").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    inputs = batch("llama")
    for step in range(10):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(0)
    return logits(model, batch("llama"))


def test_adalora_in_a_stack_prunes_its_ranks_and_loads_pruned(tmp_path):
    expected = {seed: pruned(tmp_path / str(seed), seed) for seed in (1, 2)}
    model = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "1")
    model.load_adapter(tmp_path / "2", adapter_name="second")
    torch.manual_seed(0)
    inputs = batch("llama")
    for adapter, seed in (("default", 1), ("second", 2)):
        model.set_adapter(adapter)
        assert_close(logits(model, inputs), expected[seed])
        assert model(**inputs, labels=inputs["input_ids"]).loss > 0
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "second" / "adapter_model.safetensors")
    ranks = [value.shape[0] for key, value in again.items() if "lora_E" in key]
    assert len(ranks) == 4
    assert sum(ranks) == 4, "target_r=1 of init_r=4 for each of four modules"


def test_stack_leaves_the_configs_it_is_made_of_alone():
    part = lora("llama")
    before = part.to_dict()
    for name in ("one", "two"):
        config = LoradaConfig(parts=[part], layers_to_transform=[0], init_weights=False)
        get_peft_model(TINY["llama"](), config, adapter_name=name)

    assert part.to_dict() == before


def test_options_of_the_stack_hold_for_every_part():
    options = {"layers_to_transform": [1], "init_weights": False}
    model = get_peft_model(TINY["llama"](), config_of("lora", "llama", **options)).eval()
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    assert names
    assert all(".layers.1." in name for name in names)
    inputs = batch("llama")
    assert not torch.allclose(logits(model, inputs), logits(TINY["llama"](), inputs), atol=1e-3)


def test_two_parts_of_one_kind_on_different_modules_are_one_adapter(tmp_path):
    parts = [lora("llama", QUERY), LoraConfig(r=5, target_modules=["o_proj"])]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts))
    assert_loads(model, TINY["llama"](), tmp_path, batch("llama"))


# LoRA that no weight can hold.

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


# PEFT's ``rescale_adapter_scale`` scales LoRA alone and would halve such a stack.


@pytest.mark.parametrize("further", [lmam, lambda: ia3("llama")], ids=["map", "ia3"])
def test_what_cannot_be_rescaled_whole_is_refused_and_stays(further):
    model = moved(TINY["llama"](), LoradaConfig(parts=[lora("llama"), further()]))
    inputs = batch("llama")
    expected, kind = logits(model, inputs), type(further()).__name__
    for asked in (model, model.base_model):
        refused(
            f"^rescale_adapter_scale scales LoRA alone and would leave {kind} as before: activate",
            lambda asked=asked: rescale_adapter_scale(asked, 0.5).__enter__(),
        )
        assert_close(logits(model, inputs), expected)


def test_a_stack_of_lora_is_rescaled_also_beside_a_map_that_is_not_active():
    parts = [lora("llama", QUERY), adalora("llama")]
    parts[1].target_modules = ["o_proj"]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts))
    model.add_adapter("mapped", LoradaConfig(parts=[lmam()]))
    randomise(model.eval(), "mapped")
    inputs = batch("llama")
    base, expected = logits(TINY["llama"](), inputs), logits(model, inputs)
    with rescale_adapter_scale(model, 0.0):
        assert_close(logits(model, inputs), base)
    with rescale_adapter_scale(model, 0.5):
        assert (logits(model, inputs) - base).abs().max() > 1e-3
    assert_close(logits(model, inputs), expected)
