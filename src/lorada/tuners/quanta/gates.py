"""The operator T of QuanTA as pure functions.

Chen et al., "QuanTA: Efficient High-Rank Fine-Tuning of LLMs with Quantum-Informed Tensor
Adaptation" (2024). A vector of D = d_1 ⋯ d_n numbers is seen as a tensor with axes 1 … n. Each pair
of axes (a, b) has a gate, a matrix G of shape (d_a d_b) × (d_a d_b) that mixes these two axes:

    x'_{… i'_a … i'_b …} = Σ_{i_a, i_b} G_{(i'_a i'_b), (i_a i_b)} x_{… i_a … i_b …}

The gates act one after another, T = G_(2,1) ⋯ G_(n,n-2) G_(n,n-1). So T is a dense D × D matrix of
full rank, made of Σ (d_a d_b)² numbers.

Shapes: D the product of ``dims``; P = d_a d_b of one pair; B batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AXES = 4  # number of factors of a default factorisation

# The paper's factorisations. The rule of ``default_dims`` would find others.
PAPER_DIMS = {4096: (16, 8, 8, 4), 5120: (16, 8, 8, 5)}


def pairs(axes: int) -> list[tuple[int, int]]:
    """The pairs of axes, counted from 1, in the order in which their gates act: (n, n-1) first."""
    ordered = []
    for a in range(axes, 1, -1):
        ordered += [(a, b) for b in range(a - 1, 0, -1)]
    return ordered


def default_dims(width: int) -> tuple[int, ...]:
    """The default factors of a width: the paper's, or else four factors as equal as possible.

    These are the four with the least sum, largest first: 576 = 6·6·4·4. A width with two or three
    prime factors gets just those.

    Raises:
        ValueError: for a width that is 1 or a prime number.
    """
    if width in PAPER_DIMS:
        return PAPER_DIMS[width]
    for axes in range(AXES, 1, -1):
        candidates = factorisations(width, axes)
        if candidates:
            # Equal factors give the smallest gates; ``dims`` itself decides between equal sums.
            return min(candidates, key=lambda dims: (sum(dims), dims))
    raise ValueError(f"a width of {width} is no product of two factors above 1")


def factorisations(number: int, factors: int, largest: int | None = None) -> list[tuple[int, ...]]:
    """All ways to write ``number`` as a product of ``factors`` numbers above 1, largest first.

    ``largest`` is the largest that a factor may be.
    """
    largest = number if largest is None else min(largest, number)
    if factors == 1:
        return [(number,)] if 1 < number <= largest else []
    products: list[tuple[int, ...]] = []
    for first in range(largest, 1, -1):
        if number % first == 0:
            # Each factor limits the next, so every product is found once and in order.
            others = factorisations(number // first, factors - 1, first)
            products += [(first, *rest) for rest in others]
    return products


def draw_gates(dims: Sequence[int]) -> list[Float[Tensor, "_ _"]]:
    """Random gates, uniform in ±1/√P (Kaiming with a = √5), in float32 on the CPU."""
    gates = []
    for a, b in pairs(len(dims)):
        size = dims[a - 1] * dims[b - 1]  # P
        bound = 1 / math.sqrt(size)
        # On the CPU in a fixed dtype, so that a seed gives the same gates on every machine.
        gate = torch.empty(size, size, dtype=torch.float32, device="cpu")
        gates.append(gate.uniform_(-bound, bound))
    return gates


def apply_gates(
    x: Float[Tensor, "*B D"], gates: Sequence[Float[Tensor, "_ _"]], dims: Sequence[int]
) -> Float[Tensor, "*B D"]:
    """T x for every vector of ``x``: one small matrix product per gate, first gate first."""
    batch = x.shape[:-1]
    x = x.reshape(math.prod(batch), *dims)  # the batch is dimension 0, so axis a is dimension a
    for (a, b), gate in zip(pairs(len(dims)), gates, strict=True):
        # With axes a and b last, the gate is one matrix product over all other axes at once.
        moved = x.movedim((a, b), (-2, -1))
        vectors = moved.flatten(-2)  # (…, d_a d_b), the index (i_a i_b) of G's columns
        mixed = (vectors @ gate.T).view(moved.shape)
        x = mixed.movedim((-2, -1), (a, b))
    return x.reshape(*batch, math.prod(dims))


def crop_or_pad(x: Float[Tensor, "*B _"], width: int) -> Float[Tensor, "*B _"]:
    """The first ``width`` numbers of every vector; a shorter vector is filled up with zeros."""
    if x.shape[-1] >= width:
        return x[..., :width]
    return F.pad(x, (0, width - x.shape[-1]))


def apply_to_width(
    x: Float[Tensor, "*B _"], gates: Sequence[Float[Tensor, "_ _"]], dims: Sequence[int], width: int
) -> Float[Tensor, "*B _"]:
    """T x for an x and a result of any width: both are cropped or padded to fit D."""
    return crop_or_pad(apply_gates(crop_or_pad(x, math.prod(dims)), gates, dims), width)
