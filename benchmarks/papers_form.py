"""The map in the paper's own form: the whole attention map in memory, and Attn_s added to it.

One more attention function of transformers, its eager one with the addition of the slow twin,
``functional.add_map_reference``. The map goes into the top-left corner and nothing else is touched,
as in the paper's code. It reads the factors of the same adapter, for batches without a cache that
are padded on the right, if at all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lorada.functional.maps import low_rank_map, mask_map

NAME = "papers_form"


class _InCorner(torch.autograd.Function):
    """Attention maps (B, H, N, N) with a map (H, m, m) added to their top-left corner.

    In place, unless softmax needs its output for the backward pass; then in a copy, which is the
    least that autograd lets pass. Autograd's own backward of ``+=`` would copy the gradient too.
    """

    @staticmethod
    def forward(ctx: Any, attention: Tensor, corner: Tensor) -> Tensor:
        ctx.size = size = corner.shape[-1]
        if ctx.needs_input_grad[0]:
            attention = attention.clone()
        else:
            ctx.mark_dirty(attention)
        attention[..., :size, :size] += corner
        return attention

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.needs_input_grad
        corner = grad[..., : ctx.size, : ctx.size].sum(0) if second else None
        return grad if first else None, corner


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ/√d) + tile(Attn_s), then times V (Eqs. 12-13)."""
    heads, keys = query.shape[1], key.shape[2]
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., :keys]
    fused = scores.softmax(-1)
    causal = bool(getattr(module, "is_causal", True))
    held: Any = module.lmam
    for found in held.maps():
        w_a, w_b = found.factors
        map_ = low_rank_map(w_a, w_b, found.inverse_scale)[:, :keys, :keys]
        tiled = mask_map(map_, causal, None).repeat(heads // map_.shape[0], 1, 1)
        added: Tensor = _InCorner.apply(fused, tiled)
        fused = added
    return (fused @ value).transpose(1, 2), fused


def use(base: PreTrainedModel) -> PreTrainedModel:
    """Let a model compute its attention in this form."""
    attend.adds_map = True  # type: ignore[attr-defined]  # nothing has to be added to it
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    base.set_attn_implementation(NAME)
    return base
