"""Every method on every kind of model, made small: what the tests of all methods run through."""

import functools
from typing import Any

from architectures import ARCHITECTURES, inputs
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from lorada import METHODS, build_method
from lorada.described import part_names
from lorada.plan import Plan, column_of, family_of, select_trainable

MODELS = ("llama", "roberta", "deberta_v2", "bart", "mbart")
# What a tiny model needs other than what the paper's has.
SMALL = {
    "lmam": {"rank": 2, "length": 6, "heads": 2},
    "bottleneck": {"rank": 3},
    "pa_attn": {"rank": 3},
    "parallel_ffn": {"rank": 3},
    "prefix": {"length": 3},
    "lora": {"r": 2},
    "sora": {"rank": 2},
    "lamda": {"rank": 2},
    "omoe": {"rank": 2},
    "shira": {"r": 2},
    "adalora": {"init_r": 4, "target_r": 2, "total_step": 20},
}


def small(name: str, config: Any = None) -> dict:
    """Overrides that make a method small, for the parts it has (on a model, where it is given)."""
    parts = part_names(name) if config is None else column_of(METHODS[name], config)
    return {part: SMALL[part] for part in parts or () if part in SMALL}


@functools.cache
def family(model: str) -> str:
    return family_of(ARCHITECTURES[model]().config)


def defined(name: str, model: str) -> bool:
    if (name, model) == ("bitfit", "llama"):
        return False  # which has no biases
    method = METHODS[name]
    return method.trainable is not None or family(model) in method.parts


CASES = [(name, model) for name in METHODS for model in MODELS if defined(name, model)]
UNDEFINED = [(name, model) for name in METHODS for model in MODELS if not defined(name, model)]


def placed(name: str, model: str, batch: dict[str, Tensor]) -> tuple[nn.Module | PeftModel, Plan]:
    """A tiny model with a method on it, in eval mode, and the plan of the method."""
    base = ARCHITECTURES[model]()
    plan = build_method(name, base.config, **small(name, base.config))
    if plan.config is None:
        select_trainable(base, plan.trainable)
        return base, plan
    config = plan.config
    if plan.prepare is not None:
        config = plan.prepare(base, [{**batch, "labels": batch["input_ids"]}])
    config.task_type = None
    return get_peft_model(base, config).eval(), plan


def labelled(model: str) -> dict[str, Tensor]:
    """A batch with labels that have nothing to do with it, so there is much to learn."""
    batch = inputs(model)
    tokens = batch.get("decoder_input_ids", batch["input_ids"])
    labels = tokens.roll(1, 0).masked_fill(tokens == 0, -100)
    return {**batch, "labels": labels}
