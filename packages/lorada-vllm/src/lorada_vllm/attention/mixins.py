"""What is added to an attention backend of vLLM, the same for all of them.

``FindsRows`` extends the class that makes the metadata of a step, ``AddsMap`` the one that runs the
kernel. A layer without a map runs as before.

Both read numbers on the host, in Python branches, so they cannot be part of a CUDA graph. vLLM then
runs attention between its graphs, as it does anyway for batches with prompts (``FindsRows`` says
that it supports no graph). The alternative, masks over a fixed shape, would read the values of
every sequence in every step, also of those that are longer than the map.
"""

from typing import Any

from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionCGSupport

from lorada_vllm.backends import has_map
from lorada_vllm.paged_values import PagedValues
from lorada_vllm.step import Cache, Group, groups_of_step

MAP = "lorada_map"  # the attribute of an attention layer that holds its ``PagedMap``
ROWS = "lorada_rows"  # the attribute of a step's metadata that holds its groups


class FindsRows:
    """Adds to the metadata of a step which tokens lie under the map."""

    vllm_config: Any
    layer_names: list[str]
    kv_cache_spec: Any

    # A copy of the metadata with another block table would keep the old one in its groups.
    supports_update_block_table = False

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """None for a model with maps: see above."""
        if has_map(vllm_config):
            return AttentionCGSupport.NEVER
        support: AttentionCGSupport = super().get_cudagraph_support(  # type: ignore[misc]
            vllm_config, kv_cache_spec
        )
        return support

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kw: Any
    ) -> Any:
        """The metadata of a step."""
        made = super().build(common_prefix_len, common_attn_metadata, *args, **kw)  # type: ignore[misc]
        reach = self._reach()
        if reach:
            setattr(made, ROWS, _groups(common_attn_metadata, self._cache(), reach))
        return made

    def _reach(self) -> int:
        """The length of the longest map among the layers of this group; 0 without one."""
        found = self.__dict__.get("_lorada_reach")
        if found is None:
            layers = get_layers_from_vllm_config(self.vllm_config, Attention, self.layer_names)
            maps = [layer.__dict__.get(MAP) for layer in layers.values()]
            found = max((map_.length for map_ in maps if map_ is not None), default=0)
            self.__dict__["_lorada_reach"] = found
        return int(found)

    def _cache(self) -> Cache:
        spec = self.kv_cache_spec
        return Cache(spec.block_size, spec.num_kv_heads, spec.head_size)


def _groups(common: Any, cache: Cache, reach: int) -> list[Group]:
    count = common.num_reqs
    lengths = common.seq_lens_cpu_upper_bound
    # Exact, since speculative decoding is refused. Reading the device makes the host wait.
    lengths = (common.seq_lens if lengths is None else lengths)[:count].tolist()
    if common.max_query_len == 1 and min(lengths, default=0) > reach:
        return []
    starts = common.query_start_loc_cpu[: count + 1].tolist()
    return groups_of_step(starts, lengths, common.block_table_tensor, cache, reach)


class AddsMap:
    """Adds the term of a layer's map to the output of the kernel."""

    _seen: Tensor | None = None
    _values: PagedValues

    @staticmethod
    def value_cache(kv_cache: Tensor, width: int) -> Tensor:
        """The values in a layer's cache, (blocks, G, block size, D)."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attn·V + tile(Attn_s)·V, written into ``output``."""
        result: Tensor = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
        )
        groups = getattr(attn_metadata, ROWS, None)
        own = layer.__dict__.get(MAP)
        if groups and own is not None:
            # The cache of a layer is one tensor, so what is read of it is found once.
            if self._seen is not kv_cache:
                self._seen = kv_cache
                self._values = PagedValues.of(self.value_cache(kv_cache, layer.head_size))
            own.add(output, self._values, groups)
        return result
