"""The maps by content: how much of a value is added depends on its key, or on query and key.

    content    term_i = mean_j (b_h·k_j / √d + c_h) v_j
    bilinear   term_i = mean_j (q_i A_h)(B_h k_j) / √d · v_j,    A_h ∈ R^{d×r}, B_h ∈ R^{r×d}

The mean is over the keys j that query i may see. There is no softmax, so weights may be negative.
Both maps are a product of a factor of each query and one of each key, (T, R)·(R, K), as the paper's
map is; ``content`` has rank 1 and ones for the queries. These are extensions of this project, not
of the paper.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K keys, R rank, C width
of a query and key, D width of a value.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorada.functional.causal import Matmul


def content_key_factor(
    b: Float[Tensor, "S C"], c: Float[Tensor, " S"], key: Float[Tensor, "B G K C"], heads: int
) -> Float[Tensor, "B H 1 K"]:
    """b·k/√d + c of every key, for each query head."""
    factor = bilinear_key_factor(b[:, None] * key.shape[-1] ** -0.5, key, heads)
    with_constant: Tensor = factor + c.repeat(heads // len(c))[:, None, None]
    return with_constant


def bilinear_query_factor(
    a: Float[Tensor, "S C R"], query: Float[Tensor, "B H T C"]
) -> Float[Tensor, "B H T R"]:
    """Q A / √d; head i uses A of map head i mod S (Eq. 17)."""
    own = a.repeat(query.shape[1] // len(a), 1, 1) * query.shape[-1] ** -0.5
    factor: Tensor = query @ own
    return factor


def bilinear_key_factor(
    b: Float[Tensor, "S R C"], key: Float[Tensor, "B G K C"], heads: int
) -> Float[Tensor, "B H R K"]:
    """(B k) of every key, for each query head."""
    # The query heads of a group share its keys: their B are stacked, so no key is copied.
    share, rank = heads // key.shape[1], b.shape[1]
    stacked = b.repeat(heads // len(b), 1, 1).view(key.shape[1], share * rank, -1)
    factor: Tensor = (stacked @ key.mT).unflatten(2, (share, rank))
    return factor.flatten(1, 2)


def visible_mean_map(
    left: Float[Tensor, "B H T R"],
    right: Float[Tensor, "B H R K"],
    visible: Bool[Tensor, "b T K"],
) -> Float[Tensor, "B H T K"]:
    """The map, entry by entry: left·right for visible keys, divided by their number."""
    map_: Tensor = left @ right * _shares(visible, left)[:, None]
    return map_


def visible_mean_product(
    right: Float[Tensor, "B H 1 K"],
    value: Float[Tensor, "B G K D"],
    visible: Bool[Tensor, "b T K"],
    matmul: Matmul = torch.matmul,
) -> Float[Tensor, "B H T D"]:
    """map·V of a map with ones for the queries, which all heads then do in one product.

    ``visible_mean_map`` would have a (T, K) matrix for each head; this has one for each sample.
    """
    batch, heads, _, keys = right.shape
    weighted = value.repeat_interleave(heads // value.shape[1], 1) * right.mT
    beside = weighted.transpose(1, 2).reshape(batch, keys, -1)
    product = matmul(_shares(visible, right).expand(batch, -1, -1), beside)
    by_head: Tensor = product.unflatten(2, (heads, -1))
    return by_head.transpose(1, 2)


def _shares(visible: Tensor, like: Tensor) -> Tensor:
    """Booleans divided by their number in each row; a row of padding may see nothing."""
    return visible.to(like.dtype) / visible.sum(-1, keepdim=True).clamp(min=1)


def content_term_reference(
    b: Float[Tensor, "S C"],
    c: Float[Tensor, " S"],
    key: Float[Tensor, "B G K C"],
    value: Float[Tensor, "B G K D"],
    visible: Bool[Tensor, "B T K"],
    heads: int,
) -> Float[Tensor, "B H T D"]:
    """The slow twin of the content map: the sum of the module's docstring, key by key."""
    share = heads // key.shape[1]

    def weight(n: int, h: int, i: int, j: int) -> Tensor:
        own: Tensor = b[h % len(b)] @ key[n, h // share, j] / key.shape[-1] ** 0.5
        return own + c[h % len(c)]

    return _mean_reference(weight, value, visible, heads)


def bilinear_term_reference(
    a: Float[Tensor, "S C R"],
    b: Float[Tensor, "S R C"],
    query: Float[Tensor, "B H T C"],
    key: Float[Tensor, "B G K C"],
    value: Float[Tensor, "B G K D"],
    visible: Bool[Tensor, "B T K"],
) -> Float[Tensor, "B H T D"]:
    """The slow twin of the bilinear map: the sum of the module's docstring, key by key."""
    share = query.shape[1] // key.shape[1]

    def weight(n: int, h: int, i: int, j: int) -> Tensor:
        left = query[n, h, i] @ a[h % len(a)]
        right = b[h % len(b)] @ key[n, h // share, j]
        found: Tensor = left @ right / key.shape[-1] ** 0.5
        return found

    return _mean_reference(weight, value, visible, query.shape[1])


def _mean_reference(
    weight: Callable[[int, int, int, int], Tensor], value: Tensor, visible: Tensor, heads: int
) -> Tensor:
    """mean_j weight(sample, head, i, j) v_j over the visible keys j."""
    batch, groups, keys, width = value.shape
    terms = []
    for n in range(batch):
        for h in range(heads):
            for i in range(visible.shape[1]):
                seen = [j for j in range(keys) if visible[n, i, j]]
                own = [weight(n, h, i, j) * value[n, h // (heads // groups), j] for j in seen]
                term = torch.stack(own).mean(0) if own else value.new_zeros(width)
                terms.append(term)
    return torch.stack(terms).view(batch, heads, -1, width)
