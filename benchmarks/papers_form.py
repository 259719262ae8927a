"""The map in the paper's own form: the whole attention map in memory, and Attn_s added to it.

Made from the slow twin, ``functional.add_map_reference``, as one more attention function of
transformers. It reads the factors of the same adapter, for unpadded batches without a cache.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lorada.functional import add_map_reference, low_rank_map

NAME = "papers_form"


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
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    fused = scores.softmax(-1)
    held: Any = module.lmam
    for found in held.maps():
        map_ = low_rank_map(*found.factors, found.inverse_scale)
        fused = add_map_reference(fused, map_, causal=True)
    return (fused @ value).transpose(1, 2), fused


def use(base: PreTrainedModel) -> PreTrainedModel:
    """Let a model compute its attention in this form."""
    attend.adds_map = True  # type: ignore[attr-defined]  # nothing has to be added to it
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    base.set_attn_implementation(NAME)
    return base
