"""The map's term of one step of decoding that packs many sequences into a row.

Continuous batching makes such calls. Each query belongs to another sequence, with a map of its own.

Shapes: B batch, H query heads, G key/value heads, T queries, N map length, D head width, C queries
that are computed.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import CallShape
from lorada.attention.positions import TokenTable
from lorada.functional.product import apply_map


def term_of_packed_rows(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of every query of packed sequences, (B, T, H, D) in fp32.

    Every query becomes a sample, with the values of its own sequence.
    """
    batch, queries = len(value), shape.queries
    found = table.packed_queries(attention_map.length, batch, read=can_be_read(table.rows))
    values = value.transpose(1, 2)[found.sample[:, None], found.slots].float()
    values = (values * found.real[..., None, None]).transpose(1, 2)  # (C, G, N, D)
    own = found.rows[:, None]
    if attention_map.stays_low_rank:
        map_ = attention_map.low_rank_rows(own, shape).transpose(0, 1)
    else:
        map_ = take_rows(attention_map.masked(attention_map.dense(), shape, found.real), own)
    term = apply_map(map_, values, shape.heads, shape.matmul)[:, :, 0]
    term = term * found.inside[:, None, None]
    whole = term.new_zeros(batch * queries, *term.shape[1:]).index_copy(0, found.chosen, term)
    return whole.view(batch, queries, *term.shape[1:])


def can_be_read(numbers: Tensor) -> bool:
    """Whether numbers are on the CPU, where reading them waits for nothing.

    Not where a graph is recorded, of gradients or for calls with other numbers.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._is_tracing()
    if recorded or torch._C._are_functorch_transforms_active():
        return False
    return type(numbers) is Tensor and numbers.is_cpu
