"""``PagedValues``: the values of one layer in vLLM's cache, read through the block table.

Shapes: G key/value heads, D head width, R sequences, C blocks of a sequence.
"""

from dataclasses import dataclass

from torch import Tensor

from lorada_vllm.step import Joined, Part, Together


@dataclass(frozen=True)
class PagedValues:
    """The cached values of a layer. Their memory is the cache's, so they are made once.

    Attributes:
        blocks: (blocks, G, block size, D).
        strides: of ``blocks``.
        vectors: (V, D) all that the cache holds from its first value on, as vectors of one head,
            where a CPU can sum them as they are; None else. Keys may lie between the values.
    """

    blocks: Tensor
    strides: tuple[int, ...]
    vectors: Tensor | None

    @classmethod
    def of(cls, blocks: Tensor) -> "PagedValues":
        """The values (blocks, G, block size, D) of a layer."""
        strides, width = blocks.stride(), blocks.shape[-1]
        # Every value has to begin at a multiple of D.
        aligned = strides[-1] == 1 and all(step % width == 0 for step in strides[:-1])
        if not (blocks.is_cpu and blocks.element_size() >= 4 and aligned):
            return cls(blocks, strides, None)
        count = 1 + sum((n - 1) * step for n, step in zip(blocks.shape, strides, strict=True))
        return cls(blocks, strides, blocks.as_strided((count // width, width), (width, 1)))

    def of_part(self, part: Part) -> Tensor:
        """The values (G, keys, D) of one sequence in fp32."""
        if part.only is not None:  # a view, which fp32 need not copy
            return self.blocks[part.only, :, : part.keys].float()
        paged = self.blocks[part.blocks]  # (C, G, block size, D)
        return paged.transpose(0, 1).flatten(1, 2)[:, : part.keys].float()

    def together(self, group: Together | Joined) -> Tensor:
        """The values (R, G, keys, D) of several sequences in fp32, zeros where one is shorter."""
        if isinstance(group, Together) and group.on_cpu:
            for target, block, count in group.copies.parts:
                target.copy_(self.blocks[block, :, :count])
            return group.copies.values
        paged = self.blocks[group.blocks]  # (R, C, G, block size, D)
        values = paged.transpose(1, 2).flatten(2, 3)[:, :, : group.keys].float()
        # A block may hold what another sequence left there, even a NaN, which a zero would not
        # remove.
        return values.masked_fill(group.beyond, 0.0)
