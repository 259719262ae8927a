"""The settings of AutoPEFT's three parts: a serial adapter, a parallel one, and a prefix.

    y = FFN(x), z = LN(y + x):    LN(A_s(z) + y + A_p(x) + x),    and a prefix in the attention

Zhou et al., "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning" (2024).
A_s is the part ``bottleneck`` and A_p the part ``parallel_ffn``. The paper searches for their sizes
and for the layers that have them; here both are settings, and a part of size 0 is left out.
"""

from typing import Any

SIZES = {"bottleneck": "rank", "parallel_ffn": "rank", "prefix": "length"}  # part → its size


def parts_of_size(serial: int, parallel: int, prefix: int) -> dict[str, dict[str, Any]]:
    """The parts' settings, with the published placement and start; size 0 leaves a part out."""
    settings: dict[str, dict[str, Any]] = {
        # The equations have no dropout within an adapter.
        "bottleneck": {"placement": "pfeiffer", "rank": serial, "dropout": 0.0},
        "parallel_ffn": {"rank": parallel, "scale": 4.0, "dropout": 0.0},
        "prefix": {"length": prefix, "projection": 800},
    }
    return {part: values for part, values in settings.items() if values[SIZES[part]]}
