"""The backend of CPUs with the map."""

from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from lorada_vllm.attention.mixins import AddsMap, FindsRows
from lorada_vllm.backends import has_map


class CpuBuilder(FindsRows, CPUAttentionMetadataBuilder):
    """Metadata of the CPU backend."""

    isa: str

    def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if self.isa == "amx" and has_map(vllm_config):
            # With AMX the values of two tokens stand interleaved in the cache, which only its
            # kernels read. The vector kernels keep them as they are.
            self.isa = "vec"
            self._set_isa_to_layers(layer_names)


class CpuImpl(AddsMap, CPUAttentionBackendImpl):
    """The CPU kernel, and the map."""

    @staticmethod
    def value_cache(kv_cache: Tensor, width: int) -> Tensor:
        """A block holds the keys of its tokens, then their values: see ``forward`` of vLLM."""
        blocks, groups, size, _ = kv_cache.shape
        return kv_cache.view(blocks, groups, 2 * size, width)[:, :, size:]


class CpuBackend(CPUAttentionBackend):
    """The CPU backend, and the map."""

    @staticmethod
    def get_impl_cls() -> type[CpuImpl]:
        """The class that runs the kernel."""
        return CpuImpl

    @staticmethod
    def get_builder_cls() -> type[CpuBuilder]:
        """The class that makes the metadata."""
        return CpuBuilder
