"""LoRaDA: a low-rank, signed attention map as a PEFT adapter, stacked with any other."""

import os
from typing import TYPE_CHECKING, Any

from lorada import tuners
from lorada.support.quiet import VARIABLE, silence
from lorada.support.start import without_torch
from lorada.support.version import __version__

if VARIABLE in os.environ:  # started by a lorada command, so as silent as that
    silence()

# `import lorada` makes the adapter types known to PEFT, which takes torch. The command line starts
# without them, and each command imports what it needs.
if TYPE_CHECKING or not without_torch():
    from lorada import functional
    from lorada.explore.explanation import explain
    from lorada.tuners import *  # noqa: F403

if TYPE_CHECKING:
    from lorada.compare.decide import decide
    from lorada.data.tasks import TASKS
    from lorada.methods.build import build_method
    from lorada.methods.table import METHODS
    from lorada.training.effect_size import EffectSize
    from lorada.tuners.lmam import bake
    from lorada.tuners.stack.beside import as_stack
    from lorada.tuners.stack.merging import merge_weights

__all__ = [
    "METHODS",
    "TASKS",
    "EffectSize",
    "__version__",
    "as_stack",
    "bake",
    "build_method",
    "decide",
    "explain",
    "functional",
    "merge_weights",
]
__all__ += tuners.__all__

# The rest is imported when first used. Under `lorada run`, peft's import also imports lorada, and
# transformers imports peft in the middle of its own Trainer. So nothing above may need a module of
# transformers that peft does not need.
_LAZY = {
    **dict.fromkeys(tuners.__all__, "lorada.tuners"),
    "explain": "lorada.explore.explanation",
    "EffectSize": "lorada.training.effect_size",
    "METHODS": "lorada.methods.table",
    "as_stack": "lorada.tuners.stack.beside",
    "bake": "lorada.tuners.lmam",
    "merge_weights": "lorada.tuners.stack.merging",
    "build_method": "lorada.methods.build",
    "decide": "lorada.compare.decide",
    "TASKS": "lorada.data.tasks",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "functional":
        return import_module("lorada.functional")
    if name not in _LAZY:
        raise AttributeError(f"module 'lorada' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
