"""LoRaDA: a low-rank, signed attention map as a PEFT adapter, stacked with any other."""

from lorada import functional
from lorada.tuners import BottleneckConfig, LmamConfig, LoradaConfig
from lorada.version import __version__

__all__ = ["BottleneckConfig", "LmamConfig", "LoradaConfig", "__version__", "functional"]
