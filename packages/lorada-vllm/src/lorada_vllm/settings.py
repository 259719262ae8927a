"""Refuses settings of vLLM under which a stack would not be served as it was trained."""

from typing import Any

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from lorada_vllm.backends import has_map, refuse_unknown_backend
from lorada_vllm.folder import MODELS
from lorada_vllm.refusal import refuse

PARALLEL = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
# The README says it in the same words.
ONE_DEVICE = "more than one device for a model"
PLAIN_CACHES = ("auto", "float32", "float16", "bfloat16")


class RefuseSettings(VerifyAndUpdateConfig):
    """vLLM calls this once it knows all settings, before it starts an engine."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what is not served."""
        for name in PARALLEL:
            size = getattr(vllm_config.parallel_config, name, 1)
            if size != 1:
                refuse(
                    f"{name}={size}: {ONE_DEVICE} is not served with a lorada adapter: use 1, and "
                    "a base that fits on one device"
                )
        chosen = vllm_config.attention_config.backend
        if chosen is not None and has_map(vllm_config):
            refuse_unknown_backend(chosen.name)
        if vllm_config.speculative_config is not None:
            refuse("speculative decoding is not served with a lorada adapter: leave it out")
        if vllm_config.lora_config is not None:
            refuse(
                "--enable-lora is not served with a lorada adapter, whose LoRA is merged: leave it "
                "out"
            )
        dtype = vllm_config.cache_config.cache_dtype
        if dtype not in PLAIN_CACHES:
            refuse(f"kv_cache_dtype={dtype} rounds the values that the map reads: use auto")


def register() -> None:
    """Enter the check for all our models."""
    for name in MODELS.values():
        MODELS_CONFIG_MAP[name] = RefuseSettings
