"""vLLM's backend TritonAttention with the map.

Written from vLLM's source. It never ran, for want of a GPU.
"""

from torch import Tensor
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from lorada_vllm.attention.mixins import AddsMap, FindsRows


class TritonBuilder(FindsRows, TritonAttentionMetadataBuilder):
    """Metadata of the backend."""


class TritonImpl(AddsMap, TritonAttentionImpl):
    """The kernel, and the map."""

    @staticmethod
    def value_cache(kv_cache: Tensor, width: int) -> Tensor:
        """The last dimension holds a token's key, then its value."""
        return kv_cache[..., width : 2 * width]


class TritonBackend(TritonAttentionBackend):
    """The backend, and the map."""

    @staticmethod
    def get_impl_cls() -> type[TritonImpl]:
        """The class that runs the kernel."""
        return TritonImpl

    @staticmethod
    def get_builder_cls() -> type[TritonBuilder]:
        """The class that makes the metadata."""
        return TritonBuilder
