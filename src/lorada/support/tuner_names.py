"""TUNERS: the parts of methods that this package places, each with the name of its config.

It needs no torch, so that names can be listed and checked at once.
"""

TUNERS = {
    "bottleneck": "BottleneckConfig",
    "lamda": "LamdaConfig",
    "lmam": "LmamConfig",
    "omoe": "OmoeConfig",
    "prefix": "PrefixConfig",
    "quanta": "QuantaConfig",
    "sora": "SoraConfig",
}
