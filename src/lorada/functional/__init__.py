"""The maths of the paper (Eqs. 6-17) as functions of tensors."""

from lorada.functional.maps import (
    add_map_reference,
    full_rank_map,
    low_rank_map,
    mask_map,
    position_embedding,
    position_factors,
    softmax_map,
)
from lorada.functional.product import apply_map, factors_product

__all__ = [
    "add_map_reference",
    "apply_map",
    "factors_product",
    "full_rank_map",
    "low_rank_map",
    "mask_map",
    "position_embedding",
    "position_factors",
    "softmax_map",
]
