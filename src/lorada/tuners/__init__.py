"""PEFT tuners, one file per idea; importing this package makes their types known to PEFT."""

from lorada.tuners.bottleneck.adapter import BottleneckConfig
from lorada.tuners.lamda import LamdaConfig
from lorada.tuners.lmam import LmamConfig
from lorada.tuners.omoe.adapter import OmoeConfig
from lorada.tuners.prefix import PrefixConfig
from lorada.tuners.quanta.adapter import QuantaConfig
from lorada.tuners.sora import SoraConfig
from lorada.tuners.stack.stack import LoradaConfig

__all__ = [
    "BottleneckConfig",
    "LamdaConfig",
    "LmamConfig",
    "LoradaConfig",
    "OmoeConfig",
    "PrefixConfig",
    "QuantaConfig",
    "SoraConfig",
]
