"""Plain adapters as stacks: one ``PeftModel`` takes one type of adapter."""

from pathlib import Path
from typing import Any

from peft import PeftConfig

from lorada.tuners.stack.stack_config import KEPT, LoradaConfig


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
