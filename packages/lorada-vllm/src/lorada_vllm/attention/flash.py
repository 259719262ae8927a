"""vLLM's backend FlashAttention with the map.

Written from vLLM's source. It never ran, for want of a GPU.
"""

from torch import Tensor
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from lorada_vllm.attention.mixins import AddsMap, FindsRows


class FlashBuilder(FindsRows, FlashAttentionMetadataBuilder):
    """Metadata of the backend."""


class FlashImpl(AddsMap, FlashAttentionImpl):
    """The kernel, and the map."""

    @staticmethod
    def value_cache(kv_cache: Tensor, width: int) -> Tensor:
        """The last dimension holds a token's key, then its value."""
        return kv_cache[..., width : 2 * width]


class FlashBackend(FlashAttentionBackend):
    """The backend, and the map."""

    @staticmethod
    def get_impl_cls() -> type[FlashImpl]:
        """The class that runs the kernel."""
        return FlashImpl

    @staticmethod
    def get_builder_cls() -> type[FlashBuilder]:
        """The class that makes the metadata."""
        return FlashBuilder
