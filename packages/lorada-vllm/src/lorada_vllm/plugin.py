"""The entry point ``vllm.general_plugins``: vLLM calls ``register`` in each of its processes."""

from typing import Any, NoReturn

from lorada.inference.exported_config import READERS
from lorada_vllm.backends import BACKENDS
from lorada_vllm.refusal import refuse
from lorada_vllm.versions import unknown_version


def register() -> None:
    """Teach vLLM to serve exported folders; a version that is not known refuses only those."""
    # Here and not above: a plugin that cannot be imported would be skipped without a refusal.
    reason = unknown_version()
    if reason is not None:

        def refuse_folder(config: dict[str, Any], folder: str | None) -> NoReturn:
            refuse(reason)

        READERS["vllm"] = refuse_folder
        return
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from lorada_vllm import settings
    from lorada_vllm.folder import MODELS, base_config

    for name, path in BACKENDS.items():
        register_backend(AttentionBackendEnum[name], path)
    for name in MODELS.values():
        ModelRegistry.register_model(name, f"lorada_vllm.models:{name}")
    settings.register()
    READERS["vllm"] = base_config
