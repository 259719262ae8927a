"""LoRaDA: a low-rank, signed attention map as a PEFT adapter, stacked with any other."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorada.support.tuner_names import TUNERS
from lorada.support.version import __version__

if TYPE_CHECKING:
    from lorada import functional, tuners
    from lorada.compare.compare_methods import compare_methods
    from lorada.data.tasks import TASKS
    from lorada.decision.decide import decide
    from lorada.explore.explanation import explain
    from lorada.methods.build import build_method
    from lorada.methods.peft_method import PeftMethod
    from lorada.methods.table import METHODS
    from lorada.training.callbacks import RelativeNorm
    from lorada.tuners import *  # noqa: F403
    from lorada.tuners.lmam import bake
    from lorada.tuners.stack.merging import merge_weights
    from lorada.tuners.stack.stack_config import as_stack

__all__ = [
    "METHODS",
    "TASKS",
    "PeftMethod",
    "RelativeNorm",
    "__version__",
    "as_stack",
    "bake",
    "build_method",
    "compare_methods",
    "decide",
    "explain",
    "functional",
    "merge_weights",
]
if TYPE_CHECKING:
    __all__ += tuners.__all__
else:
    __all__ += [*TUNERS.values(), "LoradaConfig"]  # noqa: F405

# Public name → the module that has it, which is imported when the name is first used.
_LAZY = {
    **dict.fromkeys(__all__, "lorada.tuners"),
    "RelativeNorm": "lorada.training.callbacks",
    "METHODS": "lorada.methods.table",
    "TASKS": "lorada.data.tasks",
    "as_stack": "lorada.tuners.stack.stack_config",
    "bake": "lorada.tuners.lmam",
    "PeftMethod": "lorada.methods.peft_method",
    "build_method": "lorada.methods.build",
    "compare_methods": "lorada.compare.compare_methods",
    "decide": "lorada.decision.decide",
    "explain": "lorada.explore.explanation",
    "merge_weights": "lorada.tuners.stack.merging",
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "testing"):
        return import_module(f"lorada.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'lorada' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _after_import(module: str, ours: str) -> None:
    """Import ``ours`` once ``module`` has been imported, by any code: now, if it has."""
    if module in sys.modules:
        import_module(ours)
    else:
        sys.meta_path.insert(0, _After(module, ours))


class _After:
    """A finder that finds one module by the other finders, and imports ours behind it."""

    def __init__(self, module: str, ours: str) -> None:
        self.module, self.ours = module, ours

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        specs = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next(filter(None, specs), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        # Not every look-up ends in an import, so the finder stays until there has been one.
        def execute_then_import_ours(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                import_module(self.ours)

        spec.loader.exec_module = execute_then_import_ours  # type: ignore[method-assign]
        return spec


# PEFT loads adapters of lorada, and transformers the folders that it exports, from here on. In a
# process that imports neither, `import lorada` imports nothing more.
_after_import("peft", "lorada.tuners")
_after_import("transformers.models.auto.configuration_auto", "lorada.inference.exported_config")
