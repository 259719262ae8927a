"""SHiRA-SNIP: its entries against gradients taken by hand, alone, in a stack and in a run."""

import warnings

import pytest
import torch
from conftest import TINY, assert_close
from folders import llama_folder, refused, rows_file
from peft import PeftModel, ShiraConfig, get_peft_model
from stacks import LAYERS, batch, lmam, logits, lora
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lorada import LoradaConfig
from lorada.methods.snip import snip
from lorada.runs.recipe import Recipe
from lorada.training import train as run_train

pytestmark = pytest.mark.fp64

TARGETS = ["q_proj", "down_proj"]


def shira(**options) -> ShiraConfig:
    return ShiraConfig(**{"r": 2, "target_modules": TARGETS, **options})


def batches(count: int = 2) -> list[dict]:
    made = [batch("llama") for _ in range(count)]
    return [{**inputs, "labels": inputs["input_ids"]} for inputs in made]


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in TARGETS}


def best_by_hand(model: nn.Module, data: list[dict]) -> dict[str, set[int]]:
    """The flat places of the r·(in + out) largest |W · mean gradient|, from plain backward."""
    model.zero_grad()
    for inputs in data:
        model(**inputs).loss.backward()
    found = {}
    for name, module in targets(model).items():
        score = (module.weight * module.weight.grad / len(data)).abs().flatten()
        found[name] = set(score.argsort(descending=True)[: 2 * sum(module.weight.shape)].tolist())
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_it_takes_the_entries_with_the_largest_weight_times_mean_gradient(count):
    data = batches(count)
    expected = best_by_hand(TINY["llama"](), data)
    if count > 1:
        assert expected != best_by_hand(TINY["llama"](), data[:1])
    model = TINY["llama"]()
    config = snip(model, data, config=shira())

    assert len(expected) == 2 * LAYERS
    for name, module in targets(model).items():
        mask = config.mask_fn(module, 2)
        assert (mask.shape, mask.dtype) == (module.weight.shape, module.weight.dtype)
        assert set(mask.flatten().nonzero().flatten().tolist()) == expected[name]


def adapted(config=None, data=None) -> PeftModel:
    """A model after one step of training."""
    base = TINY["llama"]()
    data = data or batches()
    model = get_peft_model(base, snip(base, data, config=config or shira())).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    model(**data[0]).loss.backward()
    optimizer.step()
    return model.eval()


def test_a_run_prepares_it_on_all_rows_in_padded_batches(tmp_path, monkeypatch):
    seen = []

    def seen_by(model, data, *, config):
        seen.extend(inputs["input_ids"] for inputs in data)
        return snip(model, data, config=config)

    monkeypatch.setattr("lorada.methods.snip.snip", seen_by)
    recipe = Recipe(
        model=str(llama_folder(tmp_path / "model")),
        method="shira",
        parts={"shira": {"r": 2}},
        data=str(rows_file(tmp_path / "rows.jsonl")),
        output=str(tmp_path / "run"),
        training={"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-2},
    )
    run_train.train(recipe, quiet=True)
    assert [len(tokens) for tokens in seen] == [8, 8, 8, 8, 4]
    assert len({tuple(row) for tokens in seen for row in tokens.tolist()}) == 36


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (lora("llama"), None, "LoraConfig has no ShiraConfig"),
        (LoradaConfig(parts=[lmam()]), None, "LoradaConfig has no ShiraConfig"),
        (shira(), [], "SNIP got no batches"),
        (shira(), [batch("llama")], "no loss for a batch of input_ids, attention_mask: add labels"),
        (shira(r=40), None, "r=40 takes more entries than .* has, in a weight of"),
    ],
    ids=["lora", "stack", "no-batches", "no-labels", "too-large"],
)
def test_what_cannot_work_is_refused_and_leaves_the_model_alone(config, data, message):
    model = TINY["llama"]()
    modules = [id(module) for module in model.modules()]
    refused(message, lambda: snip(model, batches() if data is None else data, config=config))
    assert [id(module) for module in model.modules()] == modules
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_weights_without_gradient_and_models_without_linears_are_refused():
    model = TINY["llama"]()
    model.spare = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="no gradient of the loss reaches spare"):
        snip(model, batches(), config=shira(target_modules=["spare"]))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="match no linear layer"):
        snip(gpt2, batches(), config=shira(target_modules=["c_fc"]))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the gradient of model\.layers.* is not finite"):
        snip(model, batches(), config=shira())


def test_a_mask_is_only_for_the_model_it_was_chosen_on():
    config = snip(TINY["llama"](), batches(), config=shira())
    with pytest.raises(ValueError, match=r"no entries for r=2 of this Linear.*call snip\(\)"):
        get_peft_model(TINY["llama"](), config)


def test_the_model_is_left_as_it_was():
    model = TINY["llama"]().train()
    model.model.embed_tokens.requires_grad_(False)
    model.model.norm.eval()
    modules = {n: (id(m), m.training) for n, m in model.named_modules()}
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    snip(model, batches(), config=shira())

    assert {n: (id(m), m.training) for n, m in model.named_modules()} == modules
    assert not hasattr(model, "peft_config")
    for name, parameter in model.named_parameters():
        requires_grad, value = before[name]
        assert parameter.grad is None
        assert parameter.requires_grad == requires_grad
        assert torch.equal(parameter, value)
        assert not parameter._post_accumulate_grad_hooks


def test_it_works_as_a_part_of_a_stack(tmp_path):
    data = batches()
    chosen = best_by_hand(TINY["llama"](), data)
    stack = LoradaConfig(parts=[lmam(init_weights=False), lora("llama", 1), shira()])
    model, inputs = adapted(stack, data), batch("llama")
    expected = logits(model, inputs)
    for name, layer in targets(model.get_base_model()).items():
        rows, columns = layer.shira_indices["default"].long()
        width = layer.base_layer.in_features
        assert set((rows * width + columns).tolist()) == chosen[name]
        assert layer.shira_weight["default"].abs().max() > 0

    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Argument self.mask_type")
        loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    assert_close(logits(loaded, inputs), expected)
    assert_close(logits(model.merge_weights(), inputs), expected)
