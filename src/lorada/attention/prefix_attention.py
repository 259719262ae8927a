"""Prefix tuning inside one attention call (Li & Liang, "Prefix-Tuning", 2021).

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V]

The prefix is put before the keys in each call. It is not stored in the cache, has no position and
no rotation, and a map of the same module does not count it.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, P prefix tokens, D head
width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall, Prefix, form_of, implementation_of

Attend = Callable[..., tuple[Tensor, Tensor | None]]


class PrefixSource(Protocol):
    """The interface of the child ``prefix`` of an attention module."""

    def prefixes(self) -> list[Prefix]:
        """The prefixes that are active in this call; empty when the adapter is disabled."""
        ...


def attend_with_prefixes(
    kernel: Attend, call: AttentionCall, mask: Any, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Run a kernel with the call's prefixes before its keys; it returns the weights of tokens.

    A kernel that has no place for a prefix, as those for packed rows, is refused.
    """
    prefixes, query, key, value = call.prefixes, call.query, call.key, call.value
    if not prefixes:
        return kernel(call.module, query, key, value, mask, **kwargs)
    # Kernels without masks hide a prefix behind a window, and packed rows have no place for it.
    if call.is_paged or call.kernel in ("flash", "flex"):
        raise ValueError(
            f"a prefix cannot be put before the keys of {implementation_of(call.module)}: "
            "use attn_implementation='sdpa' or 'eager'"
        )
    count, keys = sum(len(prefix.key) for prefix in prefixes), call.shape.keys
    # As in the kernels, the argument of the call goes before the attribute of the module.
    causal = kwargs.get("is_causal")
    causal = getattr(call.module, "is_causal", True) if causal is None else causal
    # Without a mask sdpa aligns its causal mask to the first key, which is now a prefix's.
    if mask is None and causal and call.shape.queries > 1 and call.kernel != "eager":
        mask = value.new_ones(1, 1, call.shape.queries, keys, dtype=torch.bool).tril()
    if mask is not None:
        mask = _extend_mask(mask, count, keys)
    if kwargs.get("position_bias") is not None:  # T5: a prefix has no position
        bias = nn.functional.pad(kwargs["position_bias"], (count, 0))
        kwargs = {**kwargs, "position_bias": bias}
    assert key is not None  # only a model without a kernel keeps its keys to itself
    key = prepend([prefix.key for prefix in prefixes], key)
    value = prepend([prefix.value for prefix in prefixes], value)
    output, weights = kernel(call.module, query, key, value, mask, **kwargs)
    return output, None if weights is None else weights[..., count:]


def prepend(parts: list[Tensor], states: Tensor) -> Tensor:
    """Keys or values (B, G, K, D) with those of prefixes (P, G·D) before them, (B, G, P+K, D)."""
    return torch.cat([_joined(parts, states).expand(states.shape[0], -1, -1, -1), states], 2)


def _joined(parts: list[Tensor], states: Tensor) -> Tensor:
    """Keys or values of several prefixes (P, G·D) as one (G, P, D), in the dtype of ``states``.

    A prefix of another width is refused.
    """
    _, groups, _, width = states.shape
    for part in parts:
        if part.shape[1] != groups * width:
            raise ValueError(
                f"a prefix {part.shape[1]} wide does not fit attention with {groups} key/value "
                f"heads of width {width}: leave this module out with exclude_modules"
            )
    joined = torch.cat([part.to(states.device, states.dtype) for part in parts])
    return joined.view(-1, groups, width).transpose(0, 1)


def _extend_mask(mask: Any, count: int, keys: int) -> Tensor:
    """A mask (B, ·, T, count + K) with new columns on its left, which every query sees.

    Raises:
        ValueError: for a mask that is no tensor of four dimensions, as of flash attention.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(
            f"a prefix cannot be put before a mask of this form ({form_of(mask)}): "
            "use attn_implementation='sdpa' or 'eager'"
        )
    mask = mask[..., :keys]  # the mask of a static cache may be longer
    # A mask of numbers is added to the scores; a boolean one says what is seen.
    seen = 0 if mask.is_floating_point() else 1
    return torch.cat([mask.new_full((*mask.shape[:3], count), seen), mask], -1)


def is_disentangled(module: nn.Module) -> bool:
    """Whether a module is the attention of DeBERTa-v2 or v3, not that of the first version."""
    return hasattr(module, "disentangled_attention_bias") and hasattr(module, "value_proj")


class ReplacedForward:
    """The forward of one attention module, replaced until ``remove``."""

    def __init__(self, module: nn.Module, source: PrefixSource) -> None:
        self._module = module
        # A partial function and not a closure: a copy of the model then reads its own prefixes.
        self._forward = module.__dict__["forward"] = partial(forward_with_prefixes, module, source)

    def remove(self) -> None:
        """Restore the module's own forward."""
        if self._module.__dict__.get("forward") is self._forward:
            del self._module.__dict__["forward"]


def forward_with_prefixes(
    module: Any,
    source: PrefixSource,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The forward of DeBERTa-v2 and v3 with the active prefixes before its keys.

    One softmax runs over the scores of the prefix and of the tokens, and no hook can reach the
    scores. So the forward of the module is replaced; nothing else in the package does that. The
    scores of the tokens are those of He et al., "DeBERTa" (2020), Eq. 4:

        s_ij = (q_i · k_j + q_i · kʳ_δ(i,j) + k_j · qʳ_δ(j,i)) / √(3 d)

    A prefix has no position: its scores are q_i · P_k / √(3 d).

    Returns:
        The context (B, N, H·D), and the weights of the tokens (B, H, N, N) if they were asked for.
    """
    prefixes = source.prefixes()
    if not prefixes:
        plain: tuple[Tensor, Tensor | None] = type(module).forward(
            module, hidden_states, attention_mask, output_attentions, query_states, relative_pos,
            rel_embeddings,
        )  # fmt: skip
        return plain
    heads = module.num_attention_heads
    split = partial(module.transpose_for_scores, attention_heads=heads)  # (B·H, N, D)
    query = split(module.query_proj(hidden_states if query_states is None else query_states))
    key, value = split(module.key_proj(hidden_states)), split(module.value_proj(hidden_states))
    terms = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
    # The root is taken in fp32 whatever the model's dtype, as in the module's own forward.
    scaled = query / torch.tensor(terms * query.shape[-1], dtype=torch.float32).sqrt()
    scores = scaled @ key.mT
    if module.relative_attention:
        relative = module.pos_dropout(rel_embeddings)
        scores = scores + module.disentangled_attention_bias(
            query, key, relative_pos, relative, terms
        )
    scaled, key, value, scores = (x.unflatten(0, (-1, heads)) for x in (scaled, key, value, scores))
    scores = scores.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
    before = scaled @ _joined([prefix.key for prefix in prefixes], key).mT
    weights = module.dropout(torch.cat([before, scores], -1).softmax(-1))
    context = weights @ prepend([prefix.value for prefix in prefixes], value)
    tokens = weights[..., before.shape[-1] :] if output_attentions else None
    return context.transpose(1, 2).flatten(2), tokens
