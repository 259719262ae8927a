"""The maths of orthogonal experts: Gram-Schmidt per token, the norms of DoRA, the gates."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.tuners.base.entries import wide

ROWS = 1024  # of a weight at a time in fp32, where its norms are computed
EPSILON = 1e-20  # beside ⟨u, u⟩; the outputs of experts are small in the first steps


def orthogonalise(branches: Tensor, normalize: bool = False) -> Tensor:
    """Gram-Schmidt over the experts of each token, (…, E, d) → (…, E, d), in fp32 or wider.

    u_1 = e_1, u_i = e_i − Σ_{j<i} ⟨e_i, u_j⟩ / ⟨u_j, u_j⟩ · u_j: the first expert stays as it is.
    """
    found: list[Tensor] = []
    for branch in wide(branches).unbind(-2):
        for other in found:
            share = (branch * other).sum(-1, keepdim=True)
            branch = branch - share / (other.square().sum(-1, keepdim=True) + EPSILON) * other
        found.append(branch)
    if normalize:
        found = [F.normalize(vector, dim=-1, eps=EPSILON) for vector in found]
    return torch.stack(found, -2)


@torch.no_grad()
def row_norms(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """‖W + s B_i A_i‖ of each row of each expert, (E, out), without any matrix of W's size.

    ‖W‖² + 2s (W Aᵀ)·B + s² (B A Aᵀ)·B, row by row. DoRA takes the norms as constants.

    Args:
        weight: W (out, in).
        down: A (E, r, in).
        up: B (E, out, r).
        scale: s.
    """
    on_meta = weight.device.type == "meta"  # where autocast does not exist
    with nullcontext() if on_meta else torch.autocast(weight.device.type, enabled=False):
        down, up = wide(down), wide(up)
        squares, products = [], []
        for rows in weight.split(ROWS):
            block = rows.to(down.dtype)
            squares.append(block.square().sum(1))
            products.append(block @ down.flatten(0, 1).T)
        crossed = torch.cat(products).unflatten(1, down.shape[:2]).transpose(0, 1)
        own = up @ (down @ down.mT)
        total = torch.cat(squares) + (2 * scale * crossed + scale**2 * own).mul(up).sum(-1)
        norms: Tensor = total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    return norms


def gates_of(logits: Tensor, routing: str) -> Tensor:
    """The weights of the experts of each token, (…, E), in fp32 or wider."""
    gates = torch.softmax(wide(logits), -1)
    if routing == "top2":
        chosen, index = gates.topk(2, -1)
        chosen = chosen / chosen.sum(-1, keepdim=True)
        gates = torch.zeros_like(gates).scatter(-1, index, chosen)
    return gates
