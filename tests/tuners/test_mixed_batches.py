"""``adapter_names``: each sample of a batch is served by its own stack, or by the base."""

import pytest
import torch
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model
from stacks import FFN, OUTPUT, QUERY, VALUE, bottleneck, lmam, lora, randomise
from torch import Tensor, nn

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

LENGTHS = (7, 4, 8, 3, 6, 8, 5)  # tokens of each sample
BASE = "__base__"


def stacks(name: str) -> dict[str, list]:
    """Stacks whose parts, map lengths and alignments all differ."""
    return {
        "map": [lmam()],
        "lora_map": [lora(name, QUERY, OUTPUT), lmam(length=4)],
        "neck_map": [bottleneck(), lmam(rank=1, length=9)],
        "end": [lmam(length=3, align="end"), lora(name, VALUE, FFN)],
        "one_head": [lmam(heads=1, length=5, align="end")],
        "neck": [bottleneck(scale=2.0)],
    }


ORDER = ("lora_map", BASE, "map", "end", "neck_map", "one_head", "neck")


@pytest.fixture(scope="module")
def models():
    """A tiny model of each kind with all the stacks on it."""
    return {name: with_every_stack(name) for name in ("llama", "bert", "roberta")}


def with_every_stack(name: str) -> PeftModel:
    torch.manual_seed(0)
    task = "CAUSAL_LM" if name == "llama" else None
    model = None
    for adapter, parts in stacks(name).items():
        config = LoradaConfig(parts=parts, task_type=task)
        if model is None:
            model = get_peft_model(TINY[name](), config, adapter_name=adapter)
        else:
            model.add_adapter(adapter, config)
        randomise(model, adapter)
    return model.eval()


def samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 90, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], side: str, pad: int) -> dict[str, Tensor]:
    """A batch, padded on one side, that says where each token stands in its sample."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def inputs_of(model: PeftModel, rows: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    config = model.config
    inputs = padded(rows, side, config.pad_token_id)
    if config.model_type == "roberta":
        del inputs["position_ids"]  # it counts its own, from the pads
    return inputs


def alone(model: PeftModel, adapter: str, row: Tensor) -> Tensor:
    """The logits of one sample, unpadded, with one adapter active."""
    inputs = inputs_of(model, [row])
    with torch.no_grad():
        if adapter == BASE:
            with model.disable_adapter():
                return model(**inputs).logits[0]
        model.set_adapter(adapter)
        return model(**inputs).logits[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert", "roberta"])
def test_each_sample_gets_what_it_gets_alone(models, name, side):
    model, rows = models[name], samples()
    expected = [alone(model, adapter, row) for adapter, row in zip(ORDER, rows, strict=True)]
    inputs = inputs_of(model, rows, side)
    with torch.no_grad():
        mixed = model(**inputs, adapter_names=list(ORDER)).logits

    for i, row in enumerate(rows):
        assert_close(mixed[i][inputs["attention_mask"][i].bool()], expected[i])
        plain = alone(model, BASE, row)
        changed = (expected[i] - plain).abs().max() > 1e-2
        assert changed == (ORDER[i] != BASE)


@pytest.mark.parametrize("beams", [1, 3])
def test_each_sample_generates_what_it_generates_alone(models, beams):
    model, rows = models["llama"], samples()
    options = {
        "num_beams": beams, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False,
        "pad_token_id": 0,
    }  # fmt: skip
    inputs = padded(rows, "left", 0)
    del inputs["position_ids"]  # generate makes them from the mask
    mixed = model.generate(**inputs, **options, adapter_names=list(ORDER))
    written = set()
    for i, (adapter, row) in enumerate(zip(ORDER, rows, strict=True)):
        if adapter != BASE:
            model.set_adapter(adapter)
            own = model.generate(input_ids=row[None], **options)
        else:
            with model.disable_adapter():
                own = model.generate(input_ids=row[None], **options)
        assert mixed[i, -6:].tolist() == own[0, -6:].tolist(), adapter
        written.add(tuple(mixed[i, -6:].tolist()))
    assert len(written) == len(ORDER), "the samples would not tell their adapters apart"


PLAIN = {
    "map": lambda: lmam(task_type="CAUSAL_LM"),
    "bottleneck": lambda: bottleneck(task_type="CAUSAL_LM"),
    "stack of attached parts": lambda: LoradaConfig(
        parts=[lmam(), bottleneck()], task_type="CAUSAL_LM"
    ),
    "stack with LoRA": lambda: LoradaConfig(
        parts=[lmam(), lora("llama")], task_type="CAUSAL_LM"
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ["forward", "generate"])
@pytest.mark.parametrize("kind", PLAIN)
def test_names_that_do_not_fit_are_an_error_in_one_line(kind, how):
    model = get_peft_model(TINY["llama"](), PLAIN[kind](), adapter_name="one").eval()
    model.add_adapter("two", PLAIN[kind]())
    inputs, hooks = {"input_ids": torch.randint(5, 90, (4, 6))}, hook_count(model)
    run = model if how == "forward" else model.generate

    with pytest.raises(ValueError, match="adapter_names has 'three'; loaded are one, two") as error:
        run(**inputs, adapter_names=["one", "three", "two", BASE])
    assert "\n" not in str(error.value)
    # Two names would spread over four samples, as those of a beam search do.
    for names in (["one", "two"], ["one"] * 3):
        message = f"adapter_names has {len(names)} names for 4 samples"
        with pytest.raises(ValueError, match=message) as error:
            run(**inputs, adapter_names=names)
        assert "\n" not in str(error.value)
    assert hook_count(model) == hooks
    assert torch.equal(model(**inputs).logits, model(**inputs, adapter_names=["one"] * 4).logits)


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
