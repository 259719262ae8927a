"""What PEFT's own functions do with stacks: adding adapters, saving."""

from functools import wraps
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from lorada.tuners.base.part_config import STACK, PeftTypeName
from lorada.tuners.stack.stack_config import as_stack

# What TRL calls the copy of adapter ``default`` that DPO, KTO, GRPO and RLOO refer to. It adds it
# by the config of ``default`` and copies only weights with ``.default.`` inside of their names.
REFERENCE = "ref"
# What is said instead of saving an adapter without the weights that it belongs to.
MERGED = (
    "merge_weights() has merged what it can of this adapter into the base, which its file would "
    "not hold: save it before, or write base and adapter by `lorada export RUN DIR`. In Python, "
    "save what model.merge_and_unload() gives if every part can be merged; else give "
    "model.peft_config[...].base_model_name_or_path the folder in which you save model.unload()"
)


def register() -> None:
    """Let ``PeftModel`` put plain adapters beside stacks and not save one without its base.

    TRL's reference of a trained stack becomes a copy of it, with the weights that TRL overlooks.
    """
    of_one_type: Any = PeftModel.add_adapter
    of_any: Any = PeftModel.save_pretrained

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

    @wraps(of_any)
    def save_pretrained(model: PeftModel, *args: Any, **options: Any) -> None:
        merged = getattr(model.base_model, "merged_bases", ())
        if any(config.base_model_name_or_path in merged for config in model.peft_config.values()):
            raise ValueError(MERGED)
        of_any(model, *args, **options)

    PeftModel.add_adapter = add_adapter  # type: ignore[method-assign]
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
