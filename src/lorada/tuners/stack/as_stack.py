"""Plain adapters beside stacks on one ``PeftModel``, which by itself takes one type of adapter."""

from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from lorada.tuners.base.part_config import STACK, PeftTypeName
from lorada.tuners.stack.stack_config import KEPT, LoradaConfig

# What TRL calls the copy of adapter ``default`` that DPO, KTO, GRPO and RLOO refer to. It adds it
# by the config of ``default`` and copies only weights with ``.default.`` inside of their names.
REFERENCE = "ref"


def as_stack(adapter: str | Path | PeftConfig) -> LoradaConfig:
    """A plain PEFT adapter as a stack of one part, which stands beside any other stack.

    Nothing is written. PEFT loads the adapter's own folder by it::

        model = PeftModel.from_pretrained(base, folder, config=lorada.as_stack(folder))
        model.load_adapter("another/stack", "other")

    Onto a model that has a stack already, ``model.load_adapter(folder, "plain")`` does the same.

    Args:
        adapter: the folder or the hub id of a saved adapter, or a config.

    Raises:
        ValueError: if there is no such adapter, or PEFT does not place it in the model's layers.
    """
    config = adapter
    if not isinstance(config, PeftConfig):
        config = PeftConfig.from_pretrained(str(adapter))
    if isinstance(config, LoradaConfig):
        return config
    fields: dict[str, Any] = {name: getattr(config, name, None) for name in KEPT}
    stack = LoradaConfig(parts=[config], **fields)
    if hasattr(stack.parts[0], "modules_to_save"):
        stack.parts[0].modules_to_save = None  # they are the stack's now
    return stack


def register() -> None:
    """Let ``PeftModel.add_adapter``, and so ``load_adapter``, put plain adapters beside stacks.

    TRL's reference of a trained stack becomes a copy of it, with the weights that TRL overlooks.
    """
    of_one_type: Any = PeftModel.add_adapter

    @wraps(of_one_type)
    def add_adapter(
        model: PeftModel, adapter_name: str, peft_config: PeftConfig, *args: Any, **options: Any
    ) -> None:
        here, new = model.peft_type, peft_config.peft_type
        if here != new and here == STACK:
            peft_config = as_stack(peft_config)
        elif here != new and isinstance(here, PeftTypeName) | isinstance(new, PeftTypeName):
            raise ValueError(
                f"an adapter of type {new.value} cannot stand beside one of type {here.value}: "
                "load the first one as a stack, by "
                "PeftModel.from_pretrained(base, folder, config=lorada.as_stack(folder))"
            )
        of_one_type(model, adapter_name, peft_config, *args, **options)
        same = peft_config is model.peft_config.get("default")
        if adapter_name == REFERENCE and same and here == STACK:
            weights = get_peft_model_state_dict(model, save_embedding_layers=False)
            set_peft_model_state_dict(model, weights, adapter_name)

    PeftModel.add_adapter = add_adapter  # type: ignore[method-assign]
