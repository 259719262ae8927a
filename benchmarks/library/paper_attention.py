"""The paper's own form of attention with a map: Attn_s is added to an attention map in memory.

It is an attention function for transformers, which reads the factors of lorada's adapter. The map
is added to the top-left corner of the attention map, as in the paper's code and in lorada's slow
twin ``add_map_reference``. It is for batches without a cache, without pads or padded on the right.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lorada.functional.maps import low_rank_map, mask_map

NAME = "paper_attention"


class _AddToCorner(torch.autograd.Function):
    """Adds a map (H, m, m) to the top-left corner of attention maps (B, H, N, N).

    It adds in place, or to a copy where softmax needs its output for the backward pass. Autograd's
    own backward of ``+=`` would copy the gradient too, which the paper's form does not need.
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
    """(softmax(QKᵀ/√d) + tile(Attn_s)) V (Eqs. 12-13)."""
    heads, keys = query.shape[1], key.shape[2]
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., :keys]
    weights = scores.softmax(-1)
    causal = bool(getattr(module, "is_causal", True))
    adapter: Any = module.lmam
    for one in adapter.maps():
        w_a, w_b = one.factors
        map_ = low_rank_map(w_a, w_b, one.inverse_scale)[:, :keys, :keys]
        tiled = mask_map(map_, causal, None).repeat(heads // map_.shape[0], 1, 1)
        with_map: Tensor = _AddToCorner.apply(weights, tiled)
        weights = with_map
    return (weights @ value).transpose(1, 2), weights


def use_paper_attention(base: PreTrainedModel) -> PreTrainedModel:
    """Let a model compute its attention in this form."""
    attend.adds_map = True  # type: ignore[attr-defined]  # so that lorada does not add it again
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    base.set_attn_implementation(NAME)
    return base
