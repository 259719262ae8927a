"""Gains of attention heads as functions of tensors: an extension of this project.

    constant    o_h ← (1 + g_h) o_h
    query       o_hi ← (1 + g_h + w_h·q_hi / √d) o_hi,   q_hi the query of head h for token i

o_h is what head h gives to the output projection W_o. A constant gain is a factor on columns of
W_o, so it can be merged: W_o diag(1 + g).

Shapes: B batch, H query heads, T queries, D width of a query.
"""

import math

from jaxtyping import Float
from torch import Tensor

from lorada.functional.precision import wide


def query_gains(
    query: Float[Tensor, "B H T D"], weight: Float[Tensor, "H D"], gain: Float[Tensor, " H"]
) -> Float[Tensor, "B T H"]:
    """g_h + w_h·q_hi / √D for every token, in the wider dtype of float32 and ``query``."""
    query = wide(query)
    # No matrix product, which autocast would round.
    scores = (query * weight[:, None]).sum(-1) / math.sqrt(query.shape[-1])
    return scores.transpose(1, 2) + gain


def scale_heads(heads: Float[Tensor, "*B HD"], gains: Float[Tensor, "*#B H"]) -> Tensor:
    """(1 + gain) times each head's output, in the dtype of ``heads``; rounded once, at the end.

    Args:
        heads: the outputs of all heads, side by side.
        gains: of each head, or of each head and token.
    """
    apart = heads.unflatten(-1, (gains.shape[-1], -1))
    scaled: Tensor = (apart * (1 + wide(gains))[..., None]).flatten(-2)
    return scaled.to(heads.dtype)


def gain_delta(weight: Float[Tensor, "O HD"], gain: Float[Tensor, " H"]) -> Float[Tensor, "O HD"]:
    """W_o diag(g): what is added to W_o for constant gains, in float32 or wider."""
    weight, gain = wide(weight), wide(gain)
    return weight * gain.repeat_interleave(weight.shape[1] // gain.shape[0])
