"""The attention backends of vLLM that add the map, and which models need one of them."""

from typing import Any

from lorada_vllm.refusal import refuse

BACKENDS = {
    "CPU_ATTN": "lorada_vllm.attention.cpu.CpuBackend",
    "FLASH_ATTN": "lorada_vllm.attention.flash.FlashBackend",
    "TRITON_ATTN": "lorada_vllm.attention.triton.TritonBackend",
}


def refuse_unknown_backend(name: str) -> None:
    """Refuse a backend that would leave out the map, which vLLM's default for a device may be."""
    if name not in BACKENDS:
        refuse(
            f"the attention backend {name} does not add the map: start vLLM with "
            "--attention-backend FLASH_ATTN or TRITON_ATTN (CPU_ATTN on a CPU)"
        )


def has_map(vllm_config: Any) -> bool:
    """Whether a model is served with a map, by its config (``folder.base_config``)."""
    adapter = getattr(vllm_config.model_config.hf_config, "lorada", {})
    return any(part.get("peft_type") == "LMAM" for part in adapter.get("parts", [adapter]))
