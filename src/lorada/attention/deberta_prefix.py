"""A prefix before the keys of DeBERTa-v2 and v3, which compute attention themselves.

One softmax runs over the scores of the prefix and of the tokens, and no hook can reach the scores.
So the forward of the module is replaced; nothing else in the package does that. The scores of the
tokens are those of He et al., "DeBERTa" (2020), Eq. 4:

    s_ij = (q_i · k_j + q_i · kʳ_δ(i,j) + k_j · qʳ_δ(j,i)) / √(3 d)

A prefix has no position: its scores are q_i · P_k / √(3 d).

Shapes: B batch, H heads, N tokens, P prefix tokens, D head width.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.prefix import PrefixSource, prefix_scores, prepend


def is_disentangled(module: nn.Module) -> bool:
    """Whether a module is the attention of DeBERTa-v2 or v3, not that of the first version."""
    return hasattr(module, "disentangled_attention_bias") and hasattr(module, "value_proj")


class ReplacedForward:
    """The forward of one attention module, replaced until ``remove``."""

    def __init__(self, module: nn.Module, source: PrefixSource) -> None:
        self._module = module
        # A partial function and not a closure: a copy of the model then reads its own prefixes.
        self._forward = partial(forward_with_prefixes, module, source)
        module.__dict__["forward"] = self._forward

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
    """The module's own forward with the active prefixes before its keys.

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
    before = prefix_scores(prefixes, scaled, key, 1.0).to(scores.dtype)
    weights = module.dropout(torch.cat([before, scores], -1).softmax(-1))
    context = weights @ prepend([prefix.value for prefix in prefixes], value)
    tokens = weights[..., before.shape[-1] :] if output_attentions else None
    return context.transpose(1, 2).flatten(2), tokens
