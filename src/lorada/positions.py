"""Where each real token of a batch sits: padding, caches and windows reduced to one rule.

The map of LoRaDA is indexed by token positions within a sample, while attention sees key slots
(padded, cached, windowed) and query rows. Real tokens are contiguous, so four numbers per sample
say everything (``TokenSpan``): row and column m of the map belong to key slot ``origin + m``, and
a slot counts only inside ``[start, stop)``. Pads are neither queries nor keys.

Shapes: B batch, T queries, K key slots, N map length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.functional import Align

Slot = int | Tensor  # one number for the whole batch, or (B,)


@dataclass(frozen=True)
class TokenSpan:
    """Key slots and query rows of a batch, as plain numbers or as one number per sample.

    Attributes:
        start: the first key slot that holds a real token; negative if it left a sliding cache.
        stop: one past the last key slot that holds a real token.
        origin: the key slot that row and column 0 of the map belong to.
        first: the key slot of query row 0.
    """

    start: Slot
    stop: Slot
    origin: Slot
    first: Slot

    def key_slots(self, length: int, key_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, N) key slot of each map position, and whether a real token is there."""
        slots = _column(self.origin, device) + torch.arange(length, device=device)
        inside = (slots >= _column(self.start, device)) & (slots < _column(self.stop, device))
        inside = inside & (slots >= 0) & (slots < key_len)
        return slots.clamp(0, key_len - 1), inside

    def query_rows(
        self, length: int, query_len: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(B, T) map row of each query, and whether the map has such a row for a real token."""
        slots = _column(self.first, device) + torch.arange(query_len, device=device)
        rows = slots - _column(self.origin, device)
        inside = (slots >= _column(self.start, device)) & (slots < _column(self.stop, device))
        inside = inside & (rows >= 0) & (rows < length)
        return rows.clamp(0, length - 1), inside

    def real_queries(self, query_len: int, device: torch.device) -> Tensor:
        """(B, T) booleans: which query rows are real tokens."""
        slots = _column(self.first, device) + torch.arange(query_len, device=device)
        return (slots >= _column(self.start, device)) & (slots < _column(self.stop, device))


def _column(slot: Slot, device: torch.device) -> Tensor:
    return torch.as_tensor(slot, device=device).view(-1, 1)


def locate(
    query_len: int,
    key_len: int,
    mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    length: int,
    align: Align = "start",
    positions: str = "token",
    window: int | None = None,
) -> TokenSpan:
    """Find the real tokens of a batch from what an attention function is given.

    Args:
        query_len: T.
        key_len: K.
        mask: (B, K) of ones and zeros, or (B, 1, T, K) boolean or additive; None if nothing is
            padded.
        position_ids: (B, T) or (1, T); read only where a sliding cache has dropped the first keys.
        length: N.
        align: on which end of a sample the map lies.
        positions: ``raw`` takes slots as positions and pads as tokens, as the paper's code does.
        window: width of the sliding window of this layer, in tokens.

    Raises:
        ValueError: for a mask of an unknown form, several sequences packed into one row, or a
            sliding cache without position ids.
    """
    start: Slot
    stop: Slot
    first: Slot
    if mask is None and query_len == key_len:
        _refuse_packing(position_ids, None)
    if positions == "raw" or mask is None:
        start, stop, first = _unpadded(query_len, key_len, position_ids, window)
    else:
        start, stop, first = _from_mask(query_len, key_len, mask, position_ids, window)
    origin = start if align == "start" else stop - length
    return TokenSpan(start, stop, origin, first)


def _unpadded(
    query_len: int, key_len: int, position_ids: Tensor | None, window: int | None
) -> tuple[Slot, Slot, Slot]:
    if query_len == key_len:
        return 0, key_len, 0
    if window is not None and key_len >= window:
        start = key_len - 1 - _last_position(position_ids, window)
        return start, key_len, key_len - query_len
    if query_len == 1:
        return 0, key_len, key_len - 1
    # Several queries, more slots and no mask: the prefill of a static cache, whose tail is empty,
    # or a later chunk under a flash kernel. Only positions tell them apart.
    first = 0 if position_ids is None else position_ids[:, 0]
    return 0, first + query_len, first


def _from_mask(
    query_len: int,
    key_len: int,
    mask: Tensor,
    position_ids: Tensor | None,
    window: int | None,
) -> tuple[Slot, Slot, Slot]:
    visible = visible_keys(mask, key_len)
    if query_len == key_len:
        # Any query, for behind a window, or in a packed row, the last one does not see every token.
        keys = visible.any(-2)
        _refuse_packing(position_ids, keys)
        start, stop = _ends(keys)
        return start, stop, torch.zeros_like(start)
    start, stop = _ends(visible[:, -1])
    if mask.dim() == 2:  # of a flash kernel: it says nothing of the queries, which come last
        first = torch.full_like(stop, key_len - query_len)
    else:
        # A pad at the head of the queries sees nothing; then the last query tells where they sit.
        head_seen = visible[:, 0].any(-1)
        first = torch.where(head_seen, _ends(visible[:, 0])[1] - 1, stop - query_len)
    if window is not None and key_len >= window:
        start = stop - 1 - _last_position(position_ids, window)
    return start, stop, first


def visible_keys(mask: Tensor, key_len: int) -> Tensor:
    """(B, T or 1, K) booleans from any mask that transformers hands to an attention function.

    Raises:
        ValueError: for a mask of an unknown form.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        form = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention mask of an unknown form ({form}); "
            "LMAM reads (B, K) and (B, 1, T, K) tensors: use attn_implementation='sdpa'"
        )
    if mask.dim() == 2:
        return mask[:, None, -key_len:].bool()
    mask = mask[:, 0, :, :key_len]
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2


def _ends(keys: Tensor) -> tuple[Tensor, Tensor]:
    """First and one-past-last true slot of each row of a (B, K) tensor; an empty row gives 0, 0."""
    seen = keys.any(-1)
    flags = keys.to(torch.uint8)
    stop = torch.where(seen, keys.shape[-1] - flags.flip(-1).argmax(-1), 0)
    return flags.argmax(-1), stop


def _last_position(position_ids: Tensor | None, window: int) -> Tensor:
    if position_ids is None:
        raise ValueError(
            f"a sliding window of {window} has dropped the first keys from the cache and no "
            "position_ids were passed, so token positions are unknown: pass position_ids"
        )
    return position_ids[:, -1]


def _refuse_packing(position_ids: Tensor | None, keys: Tensor | None) -> None:
    if position_ids is None or (keys is not None and keys.shape[-1] != position_ids.shape[-1]):
        return
    restarts = position_ids[:, 1:] < position_ids[:, :-1]
    if keys is not None:
        restarts = restarts & keys[:, 1:] & keys[:, :-1]
    if not torch.compiler.is_compiling() and bool(restarts.any()):
        raise ValueError(
            "position_ids restart within a row: several sequences packed into one row are not "
            "supported by LMAM yet; pass one sequence per row"
        )
