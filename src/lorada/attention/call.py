"""``AttentionCall``: the arguments of one attention call, and the properties read from them.

transformers gives an attention function three tensors, a mask in one of several forms, and keyword
arguments that depend on the model and on the caller. Only this file interprets them.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, D head width.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs, Result

# An additive mask hides a key with a number below this; the masks in use have -10⁴ or less there.
HIDDEN_BELOW = -9e3


@dataclass(frozen=True)
class CallShape:
    """The sizes of a call and which keys a query may see; it holds no tensor of the batch."""

    queries: int  # T
    keys: int  # K, those of the cache included
    heads: int  # H
    causal: bool  # whether a query sees only its own and earlier keys
    window: int | None = None  # width of the layer's sliding window, in tokens


@dataclass(frozen=True)
class Prefix:
    """One prefix: learned keys and values of P tokens, each (P, G·D)."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call."""

    module: nn.Module
    shape: CallShape
    value: Tensor  # (B, G, K, D)
    # As the model made it: (B, K) of ones and zeros, (B, 1, T, K) boolean or additive, flex
    # attention's BlockMask, or None.
    mask: Any
    inputs: ForwardInputs = NOTHING_KNOWN  # those that are not passed on to attention
    kwargs: dict[str, Any] = field(default_factory=dict)
    query: Tensor | None = None  # (B, H, T, D); None where the model computes attention itself
    key: Tensor | None = None  # (B, G, K, D), likewise
    prefixes: Sequence[Prefix] = ()  # to put before the keys and values

    @classmethod
    def read(
        cls,
        module: nn.Module,
        states: tuple[Tensor, Tensor, Tensor],
        mask: Any,
        kwargs: dict[str, Any],
        inputs: ForwardInputs = NOTHING_KNOWN,
        prefixes: Sequence[Prefix] = (),
    ) -> "AttentionCall":
        """Read what transformers passes to an attention function; ``states`` are Q, K and V."""
        query, key, value = states
        # The module's attribute goes first: a call may pass is_causal=False only because its mask
        # is causal already.
        causal = getattr(module, "is_causal", None)
        causal = bool(kwargs.get("is_causal", True) if causal is None else causal)
        window = kwargs.get("sliding_window")
        shape = CallShape(query.shape[2], value.shape[2], query.shape[1], causal, window)
        return cls(module, shape, value, mask, inputs, kwargs, query, key, prefixes)

    @property
    def kernel(self) -> str:
        """The kind of kernel, which decides how masks work: ``flash``, ``flex`` or ``eager``.

        All other names have the rules of sdpa. Without a mask, flash kernels align causal queries
        to the last key, sdpa to the first.
        """
        name = implementation_of(self.module)
        for kernel in ("flash", "flex"):
            if kernel in name:
                return kernel
        return name.removeprefix("paged|")

    @property
    def is_paged(self) -> bool:
        """Whether the cache is stored in pages, which only the kernel can read."""
        return self.kwargs.get("block_table") is not None

    @property
    def position_ids(self) -> Tensor | None:
        """(B, T) or (1, T) positions of the queries; they restart with each packed sequence."""
        return self.kwargs.get("position_ids")

    @property
    def cu_seq_lens(self) -> tuple[Tensor, Tensor] | None:
        """Cumulative lengths (P+1,) of P sequences packed into a row, in queries and in keys."""
        queries: Tensor | None = self.kwargs.get("cu_seq_lens_q")
        if queries is None:
            return None
        keys: Tensor | None = self.kwargs.get("cu_seq_lens_k")
        return queries, queries if keys is None else keys

    @property
    def longest(self) -> int | None:
        """An upper bound of the keys of each packed sequence; None if the caller does not say."""
        longest = self.kwargs.get("max_length_k")
        return longest if isinstance(longest, int) else None

    def once(self, compute: Callable[[], Result], *others: Hashable) -> Result:
        """The result of ``compute``, which one layer computes for all layers of a forward.

        It depends on the masks, positions and sizes of the call, and on ``others``.
        """
        # Facts of the whole forward are left out: layers that are computed again do not know them.
        tensors = self.mask, self.position_ids, *(self.cu_seq_lens or ())
        sizes = self.shape, self.value.shape[0], self.longest
        facts = self.kernel == "flash", self.value.device
        return self.inputs.once(compute, tensors, *sizes, *facts, *others)

    def visible_keys(self) -> Tensor:
        """(B, T or 1, K) booleans: which keys the mask lets a query see. It must not be None.

        A mask of an unknown form is refused.
        """
        mask, (queries, keys) = self.mask, (self.shape.queries, self.shape.keys)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask[:, None, -keys:].bool()
        if isinstance(mask, Tensor) and mask.dim() == 4:
            seen: Tensor = mask[:, 0, :, :keys]  # the mask of a static cache may be longer
            return seen > HIDDEN_BELOW if seen.is_floating_point() else seen.bool()
        if hasattr(mask, "mask_mod"):  # flex attention's BlockMask, made of a function of indices
            batch, device = mask.shape[0], mask.kv_num_blocks.device
            sample = torch.arange(batch, device=device)[:, None, None]
            query = torch.arange(queries, device=device)[:, None]
            key = torch.arange(keys, device=device)
            seen = mask.mask_mod(sample, torch.zeros_like(sample), query, key)
            return seen.expand(batch, queries, keys)
        raise ValueError(
            f"attention mask of an unknown form ({form_of(mask)}); LMAM reads (B, K) and "
            "(B, 1, T, K) tensors and flex attention's BlockMask: use attn_implementation='sdpa'"
        )


def is_packed_or_paged(kwargs: dict[str, Any]) -> bool:
    """Whether keyword arguments give lengths of packed sequences, or pages of a cache."""
    return kwargs.get("cu_seq_lens_q") is not None or kwargs.get("block_table") is not None


def implementation_of(module: nn.Module) -> str:
    """The ``attn_implementation`` of a module."""
    config = getattr(module, "config", None)
    return str(getattr(config, "_attn_implementation", None) or "eager")


def head_count(module: nn.Module) -> int:
    """The number of query heads of an attention module, which says it itself or by its config.

    Raises:
        ValueError: if neither says it.
    """
    for source in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(getattr(source, name, None), int):
                return int(getattr(source, name))
    raise ValueError(f"{type(module).__name__} does not say how many attention heads it has")


def form_of(mask: Any) -> str:
    """The shape of a mask, or its class if it is not a tensor, for an error."""
    return f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
