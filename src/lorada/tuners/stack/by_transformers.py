"""Loading a stack by transformers itself: ``from_pretrained(adapter)`` and ``load_adapter``.

transformers puts an adapter's name behind one beginning of names for each type of adapter, while a
stack has one for each of its parts. So the names in a stack's file are looked up instead: those
under which PEFT would save the adapter that has just been placed in the model.
"""

import functools
from typing import Any

from peft import AdaLoraConfig, PeftConfig, get_peft_model_state_dict
from peft.utils import transformers_weight_conversion as by_peft
from torch import nn
from transformers.core_model_loading import WeightRenaming

from lorada.tuners.stack.nested_layers import tuner_of
from lorada.tuners.stack.stack_config import LoradaConfig

# What names in a file have before the model's own.
IN_FILES = "base_model.model."
# Where a config keeps the names of its weights between the two calls that transformers makes.
NAMES = "_names_for_transformers"


class StackRenaming(WeightRenaming):
    """Renames the weights of one stack, from its file to the model that it has been placed in."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        super().__init__(IN_FILES, "")
        self.known: dict[str, str] = {}  # name in the file → name in the model

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """The name in the model; a weight that has none there is refused."""
        name = source_key.removeprefix(IN_FILES)
        if name == source_key and name not in self.known:
            raise ValueError(
                f"{source_key} is outside the model's layers, so only PEFT can load this adapter: "
                "PeftModel.from_pretrained(base_model, folder)"
            )
        if name not in self.known:
            raise ValueError(
                "the adapter was saved for another architecture: this model has no place for "
                f"{source_key}"
            )
        return self.known[name], None


def refuse_without_peft_model(parts: list[PeftConfig]) -> None:
    """Refuse a part with weights outside the layers where transformers itself places an adapter."""
    for part in parts:
        if tuner_of(part).uses_shared_state:
            raise ValueError(
                f"{type(part).__name__} keeps weights outside the model's layers, so only PEFT can "
                "load it: PeftModel.from_pretrained(base_model, folder)"
            )
        if isinstance(part, AdaLoraConfig) and part.rank_pattern is not None:
            raise ValueError(
                "AdaLoRA has pruned ranks of this adapter, so only PEFT can load it: "
                "PeftModel.from_pretrained(base_model, folder)"
            )


def name_weights(model: nn.Module, config: LoradaConfig, adapter_name: str) -> None:
    """Look up the names of a placed stack's weights, if transformers is about to load them.

    Raises:
        ValueError: if a part saves something else than its weights, which transformers would load
            as they are.
    """
    renaming: StackRenaming | None = config.__dict__.pop(NAMES, None)
    if renaming is None:
        return
    weights = model.state_dict()
    names = {id(weight): name for name, weight in weights.items()}
    saved = get_peft_model_state_dict(
        model, state_dict=weights, adapter_name=adapter_name, save_embedding_layers=False
    )
    computed = [name for name, weight in saved.items() if id(weight) not in names]
    if computed:
        raise ValueError(
            f"{computed[0]} is saved in a form of its own, so only PEFT can load this adapter: "
            "PeftModel.from_pretrained(base_model, folder)"
        )
    # Further weights, such as resized embeddings, have the same name in both.
    renaming.known = {name: name for name in weights}
    renaming.known |= {
        name.removeprefix(IN_FILES): names[id(weight)] for name, weight in saved.items()
    }


def _extend_transformers() -> None:
    """Let transformers find the weights of a stack by the names that are looked up."""
    of_one_type: Any = by_peft.build_peft_weight_mapping

    @functools.wraps(of_one_type)
    def build_peft_weight_mapping(
        weight_conversions: list[Any] | None, adapter_name: str, peft_config: Any = None
    ) -> list[Any]:
        if not isinstance(peft_config, LoradaConfig):
            mapping: list[Any] = of_one_type(weight_conversions, adapter_name, peft_config)
            return mapping
        # transformers calls this before it places the adapter, and renames the weights after that.
        renaming = StackRenaming()
        peft_config.__dict__[NAMES] = renaming
        return [renaming]

    by_peft.build_peft_weight_mapping = build_peft_weight_mapping


_extend_transformers()
