"""QuantaConfig as an adapter: what is saved, and quantised bases."""

import json

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY
from folders import llama_folder, refused
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from stacks import logits, randomise
from test_quanta import both, layers

from lorada import QuantaConfig

pytestmark = pytest.mark.fp64


def moved(name: str = "llama", **options) -> PeftModel:
    """A tiny model whose gates have moved away from their start, in eval mode."""
    model = get_peft_model(ARCHITECTURES[name](), QuantaConfig(**options)).eval()
    randomise(model)
    return model


def gates_file(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


# Saving and loading.


def test_a_seed_halves_the_file_and_gives_each_module_gates_of_its_own(tmp_path):
    sizes = {}
    for seed in (None, 7):
        moved(seed=seed).save_pretrained(tmp_path / str(seed))
        sizes[seed] = sum(value.numel() for value in gates_file(tmp_path / str(seed)).values())
    assert sizes[None] == 2 * sizes[7] == 2 * 4 * 240
    assert json.loads((tmp_path / "7" / "adapter_config.json").read_text())["seed"] == 7

    one, again, other = (get_peft_model(TINY["llama"](), QuantaConfig(seed=s)) for s in (7, 7, 8))
    starts = [[both(layer)[1][0] for layer in layers(model)] for model in (one, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(*starts[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))
    assert len({start.sum().item() for start in starts[0]}) == 4


def test_file_without_its_start_is_refused_in_one_line(tmp_path):
    moved().save_pretrained(tmp_path)
    tensors = {k: v for k, v in gates_file(tmp_path).items() if "start_" not in k}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    said = r"lora_gates.*but not its start"
    refused(said, lambda: PeftModel.from_pretrained(TINY["llama"](), tmp_path))


@pytest.mark.parametrize("seed", [None, 7], ids=["saved start", "seed"])
def test_names_in_the_file_are_plain_and_without_the_adapter_s(seed):
    keys = get_peft_model_state_dict(moved(seed=seed)).keys()
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_gates"
    own = {key.removeprefix(f"{place}.") for key in keys if key.startswith(place)}
    gates = {"4_3", "4_2", "4_1", "3_2", "3_1", "2_1"}
    assert own == (gates if seed else gates | {f"start_{gate}" for gate in gates})


# Quantised bases.


@pytest.mark.fp64(False)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gates_train_reload_and_merge_on_a_quantised_base(kind, tmp_path):
    from test_quantised import BATCH, base, losses  # skips where an extra is missing

    wide = {"hidden_size": 64, "intermediate_size": 128}
    folder = str(llama_folder(tmp_path / "m", initializer_range=0.2, attention_dropout=0.0, **wide))
    plain = logits(base(folder, kind).eval(), BATCH)
    assert torch.equal(
        logits(get_peft_model(base(folder, kind), QuantaConfig()).eval(), BATCH), plain
    )
    model = get_peft_model(base(folder, kind), QuantaConfig())
    found = losses(model)
    assert found[-1] < found[0] - 0.1
    # Saved before the first evaluation, as in the tests of other stacks on quantised bases.
    model.save_pretrained(tmp_path / "adapter")
    trained = logits(model.eval(), BATCH)
    loaded = PeftModel.from_pretrained(base(folder, kind), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded, BATCH), trained)

    # Two models, as an evaluation changes how bitsandbytes keeps the weights. Quantised anew, the
    # merged weight is near and no more.
    randomise(one := get_peft_model(base(folder, kind), QuantaConfig(seed=1)))
    two = get_peft_model(base(folder, kind), QuantaConfig(seed=1))
    set_peft_model_state_dict(two, get_peft_model_state_dict(one))
    expected, merged = logits(one.eval(), BATCH), logits(two.merge_and_unload().eval(), BATCH)
    assert (merged - expected).norm() < 0.5 * (expected - plain).norm()
