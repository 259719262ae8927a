"""PEFT tuners: each places one kind of part in a model; ``stack`` places several as one adapter.

``TUNERS`` lists them without importing any, for commands that start without torch. The first use of
a config imports all tuners, which registers them with PEFT.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorada.tuners.bottleneck.adapter import BottleneckConfig
    from lorada.tuners.lamda import LamdaConfig
    from lorada.tuners.lmam import LmamConfig
    from lorada.tuners.omoe import OmoeConfig
    from lorada.tuners.pooling import PoolingConfig as PoolingConfig  # no part of a method
    from lorada.tuners.prefix import PrefixConfig
    from lorada.tuners.quanta.adapter import QuantaConfig
    from lorada.tuners.sora import SoraConfig
    from lorada.tuners.stack.config import LoradaConfig

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

# The name of a part in a method → its config, and the file that registers it.
TUNERS = {
    "bottleneck": ("BottleneckConfig", "bottleneck.adapter"),
    "lamda": ("LamdaConfig", "lamda"),
    "lmam": ("LmamConfig", "lmam"),
    "omoe": ("OmoeConfig", "omoe"),
    "prefix": ("PrefixConfig", "prefix"),
    "quanta": ("QuantaConfig", "quanta.adapter"),
    "sora": ("SoraConfig", "sora"),
}


def __getattr__(name: str) -> Any:
    """Import every tuner at the first use of a config: a saved stack may have parts of any kind."""
    further = [("PoolingConfig", "pooling"), ("LoradaConfig", "stack.stack")]
    configs = dict([*TUNERS.values(), *further])
    if name not in configs:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for config, module in configs.items():
        globals()[config] = getattr(import_module(f"{__name__}.{module}"), config)
    return globals()[name]
