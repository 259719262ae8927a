"""AutoPEFT's three parts, and ``Configuration``: the size of each and the layers that have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Part → the setting for its size: of the serial adapter, the parallel adapter and the prefix.
SIZES = {"bottleneck": "rank", "parallel_ffn": "rank", "prefix": "length"}
LAYERS = "layers_to_transform"


def parts_of_size(serial: int, parallel: int, prefix: int) -> dict[str, dict[str, Any]]:
    """The parts' settings, with the published placement and start; size 0 leaves a part out."""
    settings: dict[str, dict[str, Any]] = {
        # The equations have no dropout within an adapter.
        "bottleneck": {"placement": "pfeiffer", "rank": serial, "dropout": 0.0},
        "parallel_ffn": {"rank": parallel, "scale": 4.0, "dropout": 0.0},
        "prefix": {"length": prefix, "projection": 800},
    }
    return {part: values for part, values in settings.items() if values[SIZES[part]]}


@dataclass(frozen=True)
class Configuration:
    """What a search chooses: the size of each part, and the layers that have them.

    Attributes:
        serial: width of the serial adapter; 0 for none, as with the others.
        parallel: width of the parallel adapter.
        prefix: length of the prefix, in tokens.
        layers: indices of the layers that have the parts, in encoder and decoder alike.
    """

    serial: int
    parallel: int
    prefix: int
    layers: Sequence[int]

    def overrides(self) -> dict[str, dict[str, Any]]:
        """The overrides of ``build_method("autopeft", …)`` that make this configuration.

        Raises:
            ValueError: if no part or no layer is left.
        """
        sizes = (self.serial, self.parallel, self.prefix)
        layers = sorted(set(self.layers))
        if not any(sizes):
            raise ValueError(
                "serial=0, parallel=0, prefix=0 leaves no part: give one of them a size"
            )
        if not layers:
            raise ValueError("layers=[] leaves no layer: name at least one")
        return {
            part: {name: size, LAYERS: layers} if size else {name: 0}
            for (part, name), size in zip(SIZES.items(), sizes, strict=True)
        }
