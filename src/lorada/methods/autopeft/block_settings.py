"""AutoPEFT's three blocks as settings: which part each is, and what its size is called there."""

from collections.abc import Iterable
from typing import Any

# The parts of the method and the setting of each that is its size.
SIZES = {"bottleneck": "rank", "parallel_ffn": "rank", "prefix": "length"}
LAYERS = "layers_to_transform"


def blocks(serial: int, parallel: int, prefix: int) -> dict[str, dict[str, Any]]:
    """The settings of the blocks, by part, with the published placement and start; 0 for none."""
    settings: dict[str, dict[str, Any]] = {
        # The equations have no dropout within an adapter.
        "bottleneck": {"placement": "pfeiffer", "rank": serial, "dropout": 0.0},
        "parallel_ffn": {"rank": parallel, "scale": 4.0, "dropout": 0.0},
        "prefix": {"length": prefix, "projection": 800},
    }
    return {part: values for part, values in settings.items() if values[SIZES[part]]}


def configuration(
    serial: int, parallel: int, prefix: int, layers: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """A configuration as overrides: ``build_method("autopeft", config, **configuration(…))``.

    Args:
        serial: width of the serial adapter; 0 for none, as with the others.
        parallel: width of the parallel adapter.
        prefix: length of the prefix, in tokens.
        layers: indices of the layers that have the blocks, of encoder and decoder where there are
            both.

    Raises:
        ValueError: if no block or no layer is left.
    """
    sizes, chosen = (serial, parallel, prefix), sorted(set(layers))
    if not any(sizes):
        raise ValueError("serial=0, parallel=0, prefix=0 leaves no block: give one of them a size")
    if not chosen:
        raise ValueError("layers=[] leaves no layer: name at least one")
    return {
        part: {name: size, LAYERS: chosen} if size else {name: 0}
        for (part, name), size in zip(SIZES.items(), sizes, strict=True)
    }
