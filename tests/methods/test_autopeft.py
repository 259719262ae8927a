"""AutoPEFT's block against its equations, and what its sizes and layers count."""

import pytest
from architectures import ARCHITECTURES, inputs, logits
from conftest import assert_close
from peft import PeftModel, get_peft_model
from placements import Adapter, parts_of
from stacks import randomise
from torch import nn

from lorada import BottleneckConfig, LoradaConfig, build_method
from lorada.methods.autopeft import SIZES
from lorada.runs.models.count import count_parameters

pytestmark = pytest.mark.fp64

SERIAL = {"placement": "pfeiffer", "rank": 3, "dropout": 0.0}
PARALLEL = {"rank": 5, "scale": 4.0, "dropout": 0.0}
PARTS = {"serial": BottleneckConfig(**SERIAL), "parallel": BottleneckConfig(**PARALLEL)}
# What reads x, the last norm, and the module that holds the parts, in a layer.
LAYERS = {
    **dict.fromkeys(("bert", "roberta", "deberta_v2"), ("intermediate", "output.LayerNorm")),
    "distilbert": ("ffn", "output_layer_norm"),
    "bart": ("fc1", "final_layer_norm"),
}
HOSTS = {"distilbert": "ffn", "bart": "final_layer_norm"}


class Reader(nn.Module):
    """What reads x, which it keeps."""

    def __init__(self, module):
        super().__init__()
        self.module, self.x = module, None

    def forward(self, x):
        self.x = x
        return self.module(x)


class Block(nn.Module):
    """LN(A_s(z) + y + A_p(x) + x), z = LN(y + x), in the place of LN(y + x)."""

    def __init__(self, norm, reader, adapters):
        super().__init__()
        self.norm, self.reader = norm, (reader,)
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, y_plus_x):
        joined = y_plus_x
        if "serial" in self.adapters:
            joined = joined + self.adapters["serial"](self.norm(y_plus_x))
        if "parallel" in self.adapters:
            joined = joined + self.adapters["parallel"](self.reader[0].x)
        return self.norm(joined)


def twin_of(model: PeftModel, name: str) -> nn.Module:
    """The plain model with blocks written from the equations, with copies of the adapters."""
    plain, left = ARCHITECTURES[name](use_cache=False), parts_of(model)
    (reads, norm), host = LAYERS[name], HOSTS.get(name, "intermediate")
    held = {"serial": f"{host}.bneck_pfeiffer", "parallel": f"{host}.bneck"}
    for layer in [key for key, _ in plain.named_modules() if key.rpartition(".")[2].isdigit()]:
        mine = {kind: left.pop(f"{layer}.{child}", None) for kind, child in held.items()}
        mine = {kind: part for kind, part in mine.items() if part is not None}
        if not mine:
            continue
        reader = Reader(plain.get_submodule(f"{layer}.{reads}"))
        adapters = {kind: Adapter(part) for kind, part in mine.items()}
        block = Block(plain.get_submodule(f"{layer}.{norm}"), reader, adapters)
        block.parts = mine
        plain.set_submodule(f"{layer}.{reads}", reader)
        plain.set_submodule(f"{layer}.{norm}", block)
    assert not left, "parts that no block accounts for"
    return plain.eval()


def adapted(name: str, parts: list, **options) -> PeftModel:
    model = get_peft_model(
        ARCHITECTURES[name](use_cache=False), LoradaConfig(parts=parts, **options)
    ).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("present", ["serial", "parallel", "serial parallel", "parallel serial"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_block_is_its_equations_with_their_gradients(name, present):
    batch = inputs(name)
    model = adapted(name, [PARTS[kind] for kind in present.split()])
    twin = twin_of(model, name)
    outputs = [m(**batch).logits for m in (model, twin)]
    for output in outputs:
        output.square().mean().backward()

    assert (outputs[1] - logits(ARCHITECTURES[name](), **batch)).abs().max() > 0.1
    assert_close(outputs[0], outputs[1])
    blocks = [module for module in twin.modules() if isinstance(module, Block)]
    assert blocks
    for block in blocks:
        for kind, part in block.parts.items():
            for key, weight in block.adapters[kind].weights.items():
                assert weight.grad.abs().max() > 0
                assert_close(getattr(part, key)["default"].grad, weight.grad)


def overrides(*chosen) -> dict:
    """Settings for the sizes of the three parts, in their order, and the layers that have them."""
    *sizes, layers = chosen
    return {
        part: {name: size, "layers_to_transform": list(layers)} if size else {name: 0}
        for (part, name), size in zip(SIZES.items(), sizes, strict=True)
    }


def method(name: str, *chosen) -> LoradaConfig:
    """The stack of these sizes and layers on an architecture, without its task type."""
    config = build_method("autopeft", ARCHITECTURES[name]().config, **overrides(*chosen)).config
    config.task_type = None
    return config


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
        ((4, 0, 0), ["bneck_pfeiffer"]),
        ((0, 4, 0), ["bneck"]),
        ((0, 0, 4), ["prefix"]),
        ((4, 4, 0), ["bneck_pfeiffer", "bneck"]),
    ],
)
def test_a_block_of_size_0_is_left_out_and_comes_back_so_from_the_file(chosen, kinds, tmp_path):
    base = ARCHITECTURES["roberta"]
    model = get_peft_model(base(), method("roberta", *chosen, [0])).eval()
    randomise(model)
    batch = inputs("roberta")
    changed = logits(model, **batch)
    every = ("bneck_pfeiffer", "bneck", "prefix")
    names = {part for key in model.state_dict() for part in key.split(".")}
    assert [kind for kind in every if kind in names] == kinds
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), str(tmp_path)).eval()

    assert_close(logits(loaded, **batch), changed)


def test_the_balanced_example_on_roberta_is_552960_weights_and_18720_biases():
    assert 12 * 2 * 768 * (12 + 12 + 6) == 552_960
    assert count_parameters("autopeft", "roberta-base", [])["trainable"] == 552_960 + 18_720


def test_a_method_without_a_part_left_is_refused():
    with pytest.raises(ValueError, match=r"^bottleneck\.rank=0, .* leaves autopeft without a part"):
        method("roberta", 0, 0, 0, [])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deberta_v2", ["pfeiffer", "ffn", "prefix"]),
        ("mbart", ["ffn", "prefix"]),  # no serial adapter: no norm follows the FFN's sum
        ("bart", ["pfeiffer", "ffn", "prefix"]),
    ],
)
def test_a_model_has_the_blocks_that_it_has_a_form_of(name, parts):
    model = ARCHITECTURES[name]().config
    absent = [0 if kind not in parts else 4 for kind in ("pfeiffer", "ffn", "prefix")]
    for settings in ({}, overrides(*absent, [0])):
        config = build_method("autopeft", model, **settings).config
        assert [getattr(part, "placement", "prefix") for part in config.parts] == parts
