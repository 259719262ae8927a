"""The maths of OMoE as pure functions: Gram-Schmidt, the norms of DoRA, and the router.

Shapes: E experts, r rank, d width of the output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.functional.precision import no_autocast, wide

ROWS = 1024  # how many rows of a weight are converted to float32 at a time
EPSILON = 1e-20  # added to ⟨u, u⟩. So small since the outputs of experts start near 0.


def orthogonalise(experts: Tensor, normalize: bool = False) -> Tensor:
    """Gram-Schmidt: u_1 = e_1 and u_i = e_i − Σ_{j<i} ⟨e_i, u_j⟩ / ⟨u_j, u_j⟩ · u_j.

    ``experts`` has e_i of every token (…, E, d), the result u_i, in float32 or wider. ``normalize``
    divides each u_i by its norm.
    """
    found: list[Tensor] = []
    for vector in wide(experts).unbind(-2):
        # The modified form of Gram-Schmidt: each product uses the vector as reduced so far, which
        # keeps rounding errors small.
        for other in found:
            product = (vector * other).sum(-1, keepdim=True)
            vector = vector - product / (other.square().sum(-1, keepdim=True) + EPSILON) * other
        found.append(vector)
    if normalize:
        found = [F.normalize(vector, dim=-1, eps=EPSILON) for vector in found]
    return torch.stack(found, -2)


@torch.no_grad()
def row_norms(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The norm of each row of W + s B_i A_i, without a copy of W or a matrix of its size.

    Its square is ‖W‖² + 2s (W Aᵀ)·B + s² (B A Aᵀ)·B, row by row. DoRA treats the norm as constant,
    so no gradient is computed.

    Args:
        weight: W (out, in).
        down: A (E, r, in).
        up: B (E, out, r).
        scale: s.

    Returns:
        The norms (E, out), in float32 or wider.
    """
    with no_autocast(weight.device):
        down, up = wide(down), wide(up)
        squares, products = [], []
        for some in weight.split(ROWS):
            rows = some.to(down.dtype)
            squares.append(rows.square().sum(1))
            products.append(rows @ down.flatten(0, 1).T)
        weight_by_down = torch.cat(products).unflatten(1, down.shape[:2]).transpose(0, 1)
        mixed = 2 * scale * weight_by_down + scale**2 * (up @ (down @ down.mT))
        total = torch.cat(squares) + mixed.mul(up).sum(-1)
        # Rounding may take the square of a norm near 0 below 0.
        norms: Tensor = total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    return norms


def expert_shares(logits: Tensor, routing: str) -> Tensor:
    """g: the share that each expert has in a token's output (…, E), in float32 or wider."""
    shares = torch.softmax(wide(logits), -1)
    if routing == "top2":
        chosen, index = shares.topk(2, -1)
        chosen = chosen / chosen.sum(-1, keepdim=True)
        shares = torch.zeros_like(shares).scatter(-1, index, chosen)
    return shares
