"""Stacks on quantised bases: nf4 of bitsandbytes and int8 of torchao, on the CPU."""

import pytest
import torch
from folders import llama_folder, refused
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from stacks import bottleneck, logits, lora, moved, training_stack
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import lorada

pytest.importorskip("bitsandbytes", reason="needs the bnb extra: pip install 'lorada[bnb]'")
torchao = pytest.importorskip("torchao", reason="needs the torchao extra")

QUANTISED = ("nf4", "nf4_bf16", "int8")
BATCH = {"input_ids": torch.arange(5, 45).view(4, 10)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As wide as a block of nf4, which is 64 numbers."""
    path = tmp_path_factory.mktemp("models") / "llama"
    wide = {"hidden_size": 64, "intermediate_size": 128}
    return str(llama_folder(path, initializer_range=0.2, attention_dropout=0.0, **wide))


def base(folder, kind):
    """A freshly quantised base."""
    options = {}
    if kind.startswith("nf4"):
        compute = torch.bfloat16 if kind == "nf4_bf16" else torch.float32
        options["dtype"] = compute
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    if kind == "int8":
        weights = torchao.quantization.Int8WeightOnlyConfig()
        options["quantization_config"] = TorchAoConfig(weights)
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options)


def losses(model, steps=6):
    """Train, and return the loss of every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    found = []
    for _ in range(steps):
        loss = model.train()(**BATCH, labels=BATCH["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


CONFIGS = {
    "stack": training_stack,
    "series": lambda: bottleneck(placement="series"),
    "parallel": lambda: bottleneck(placement="parallel"),
    "quanta": lorada.QuantaConfig,
}
CASES = [
    *(("stack", kind) for kind in QUANTISED), ("series", "nf4"), ("parallel", "int8"),
    ("quanta", "nf4"), ("quanta", "int8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_adapter_trains_and_reloads_onto_a_freshly_quantised_base(name, kind, folder, tmp_path):
    model = get_peft_model(base(folder, kind), CONFIGS[name]())
    start = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in start.values())
    found = losses(model, steps=12)
    assert found[-1] < found[0] - (1 if name == "stack" else 0.1)
    assert not any(torch.equal(p, start[n]) for n, p in model.named_parameters() if n in start)
    # Saved before the first evaluation: on a CPU with AVX512-BF16, bitsandbytes packs the base's
    # weights in an evaluation, and taking a state dict then spoils them, adapter or not.
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(folder, kind), str(tmp_path))
    assert torch.equal(logits(loaded, BATCH), logits(model.eval(), BATCH))
    if name == "quanta":
        refused("is quantised, which merging does not support", loaded.merge_and_unload)


@pytest.mark.parametrize("kind", QUANTISED)
def test_merging_leaves_what_peft_leaves_and_the_rest_of_the_stack(kind, folder):
    model = moved(base(folder, kind), training_stack())
    state = get_peft_model_state_dict(model)
    plain = get_peft_model(base(folder, kind), lora("llama"))
    own = {key: value for key, value in state.items() if "lora_A" in key or "lora_B" in key}
    set_peft_model_state_dict(plain, own)
    expected = logits(plain.merge_and_unload().eval(), BATCH)
    merged = model.base_model.merge_weights().eval()
    rest = get_peft_model_state_dict(merged)
    assert rest.keys() == state.keys() - own.keys()
    assert all(torch.equal(rest[key], state[key]) for key in rest)
    with merged.disable_adapter():
        assert torch.equal(logits(merged, BATCH), expected)
    assert not torch.allclose(logits(merged, BATCH), expected, atol=0.1)


# Each is left once and reached once.
MOVES = (("fp32", "nf4"), ("nf4", "int8"), ("int8", "nf4_bf16"), ("nf4_bf16", "fp32"))


@pytest.mark.parametrize(("here", "there"), MOVES)
def test_an_adapter_loads_onto_any_quantisation_of_its_base(here, there, folder, tmp_path):
    model = moved(base(folder, here), training_stack())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(folder, there), str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    found = get_peft_model_state_dict(loaded)
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key].cpu()) for key in saved)
    with_it = logits(loaded, BATCH)
    with loaded.disable_adapter():
        assert not torch.allclose(logits(loaded, BATCH), with_it, atol=0.1)


@pytest.mark.parametrize(
    ("kind", "reentrant"), [("nf4", True), ("nf4_bf16", False), ("int8", False), ("int8", True)]
)
def test_checkpointing_changes_no_loss_on_a_quantised_base(kind, reentrant, folder):
    def train(**options):
        torch.manual_seed(0)
        prepared = prepare_model_for_kbit_training(base(folder, kind), **options)
        return losses(get_peft_model(prepared, training_stack()), steps=3)

    kwargs = {"use_reentrant": reentrant}
    checkpointed = train(use_gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    assert checkpointed == train(use_gradient_checkpointing=False)
