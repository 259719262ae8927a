"""PEFT tuners: each places one kind of part in a model; ``stack`` places several as one adapter.

Importing this package registers all of them with PEFT: a saved stack may have parts of any kind.
"""

import peft  # noqa: F401 - first, as importing it imports this package where lorada is imported

from lorada.tuners.bottleneck.bottleneck import BottleneckConfig
from lorada.tuners.lamda import LamdaConfig
from lorada.tuners.lmam import LmamConfig
from lorada.tuners.omoe import OmoeConfig
from lorada.tuners.pooling import PoolingConfig as PoolingConfig  # no part of a method
from lorada.tuners.prefix import PrefixConfig
from lorada.tuners.quanta.quanta import QuantaConfig
from lorada.tuners.sora import SoraConfig
from lorada.tuners.stack.stack import LoradaModel as LoradaModel
from lorada.tuners.stack.stack_config import LoradaConfig

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
