"""``map_positions``: where the tokens of an attention call lie in one map."""

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall
from lorada.attention.locate import token_positions
from lorada.attention.observation import AnyMap
from lorada.attention.positions import TokenPositions, TokenTable


def map_positions(call: AttentionCall, attention_map: AnyMap) -> TokenPositions:
    """Where the tokens of a call lie in a map; for other forms, the numbers of the tokens.

    Raises:
        ValueError: if sequences are packed into a row and attention lets them see each other.
    """
    raw, end = False, None
    if isinstance(attention_map, AttentionMap):
        raw = attention_map.positions == "raw"
        end = attention_map.length if attention_map.align == "end" else None
    positions = token_positions(call, raw=raw, end=end)
    packed = isinstance(positions, TokenTable) and positions.sequences > 1
    if packed and call.mask is None and call.kernel != "flash":
        raise ValueError(
            "several sequences are packed into one row and attention would let them see each "
            "other: pass use_cache=False and position_ids that restart with each sequence"
        )
    return positions
