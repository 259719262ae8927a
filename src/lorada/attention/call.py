"""One attention call, read once.

transformers gives an attention function three tensors, a mask in one of several forms, and keyword
arguments that depend on the model and on the caller. This file reads all of that; the others ask an
``AttentionCall``.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs
from lorada.functional.causal import Matmul

# An additive mask hides a key by a number below this; all forms in use take off at least 10⁴.
HIDDEN_BELOW = -9e3


@dataclass(frozen=True)
class CallShape:
    """The sizes of a call and which keys a query may see; it holds no tensor of the batch.

    Attributes:
        queries: T.
        keys: K, with those of the cache.
        heads: H.
        causal: whether a query sees only its own and earlier keys.
        window: width of the layer's sliding window, in tokens; None without one.
        matmul: the function that takes the last product of a term. In the backward pass it is one
            that has gradients but no value.
    """

    queries: int
    keys: int
    heads: int
    causal: bool
    window: int | None = None
    matmul: Matmul = torch.matmul


@dataclass(frozen=True)
class Prefix:
    """One prefix: learned keys and values of P tokens.

    Attributes:
        key: P_k, (P, G·D).
        value: P_v, likewise.
        samples: (B,) booleans, the samples of a mixed batch that see it; None for all.
    """

    key: Tensor
    value: Tensor
    samples: Tensor | None = None


@dataclass(frozen=True)
class AttentionCall:
    """One call of a module's attention: what it was given, and how to read that.

    Attributes:
        module: the attention module.
        shape: sizes, and which keys a query may see.
        value: (B, G, K, D).
        mask: (B, K) of ones and zeros, (B, 1, T, K) boolean or additive, flex attention's
            BlockMask, or None: as the model made it.
        inputs: what the model's forward was given and attention is not.
        kwargs: the keyword arguments of the call.
        query: (B, H, T, D); None where the model computes attention itself.
        key: (B, G, K, D), likewise.
        prefixes: learned keys and values that the module puts before those of the call.
    """

    module: nn.Module
    shape: CallShape
    value: Tensor
    mask: Any
    inputs: ForwardInputs = NOTHING_KNOWN
    kwargs: dict[str, Any] = field(default_factory=dict)
    query: Tensor | None = None
    key: Tensor | None = None
    prefixes: Sequence[Prefix] = ()

    @classmethod
    def read(
        cls,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        kwargs: dict[str, Any],
        inputs: ForwardInputs = NOTHING_KNOWN,
        prefixes: Sequence[Prefix] = (),
    ) -> "AttentionCall":
        """Read what transformers passes to an attention function."""
        # A module that knows whether it is a decoder is right: the argument of a call may say
        # False only because the mask is causal already.
        causal = getattr(module, "is_causal", None)
        causal = bool(kwargs.get("is_causal", True) if causal is None else causal)
        window = kwargs.get("sliding_window")
        shape = CallShape(query.shape[2], value.shape[2], query.shape[1], causal, window)
        return cls(module, shape, value, mask, inputs, kwargs, query, key, prefixes)

    @property
    def implementation(self) -> str:
        """The name of the attention implementation, as ``attn_implementation`` gives it."""
        return implementation_of(self.module)

    @property
    def kernel(self) -> str:
        """Whose rules for masks hold: ``flash``, ``flex``, ``eager``, or another name for sdpa's.

        Without a mask, flash kernels align causal queries to the last key, sdpa to the first.
        """
        name = self.implementation
        for kernel in ("flash", "flex"):
            if kernel in name:
                return kernel
        return name.removeprefix("paged|")

    @property
    def is_paged(self) -> bool:
        """Whether the kernel alone can read the cache, whose keys and values lie in pages."""
        return self.kwargs.get("block_table") is not None

    @property
    def position_ids(self) -> Tensor | None:
        """(B, T) or (1, T) positions of the queries; they start anew with each packed sequence."""
        return self.kwargs.get("position_ids")

    @property
    def cu_seq_lens(self) -> tuple[Tensor, Tensor] | None:
        """(P+1,) cumulative lengths, in queries and in keys, of the sequences packed into a row."""
        queries: Tensor | None = self.kwargs.get("cu_seq_lens_q")
        if queries is None:
            return None
        keys: Tensor | None = self.kwargs.get("cu_seq_lens_k")
        return queries, queries if keys is None else keys

    @property
    def scaling(self) -> float:
        """What the scores are multiplied by before the softmax."""
        return float(self.kwargs.get("scaling") or self.value.shape[-1] ** -0.5)

    def visible_keys(self) -> Tensor:
        """(B, T or 1, K) booleans: which keys the mask, which must be there, lets a query see.

        Raises:
            ValueError: for a mask of an unknown form.
        """
        mask, (queries, keys) = self.mask, (self.shape.queries, self.shape.keys)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask[:, None, -keys:].bool()
        if isinstance(mask, Tensor) and mask.dim() == 4:
            seen: Tensor = mask[:, 0, :, :keys]  # that of a static cache may be longer
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
    """Whether keyword arguments give lengths of packed sequences, or pages of a cache.

    A function of its own, as in decoding it is asked before anything of a call is read.
    """
    return kwargs.get("cu_seq_lens_q") is not None or kwargs.get("block_table") is not None


def implementation_of(module: nn.Module) -> str:
    """The name of the attention implementation that a module runs under."""
    config = getattr(module, "config", None)
    return str(getattr(config, "_attn_implementation", None) or "eager")


def head_count(module: nn.Module) -> int:
    """Query heads of an attention module.

    Raises:
        ValueError: if neither the module nor its config says it.
    """
    for source in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(getattr(source, name, None), int):
                return int(getattr(source, name))
    raise ValueError(f"{type(module).__name__} does not say how many attention heads it has")


def form_of(mask: Any) -> str:
    """The shape of a mask, or its class where it is no tensor, for an error."""
    return f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
