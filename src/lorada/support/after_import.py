"""Imports a module of ours as soon as one of another package has been imported, by any code."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def after_import(module: str, ours: str) -> None:
    """Import ``ours`` once ``module`` has been imported: now, if it has."""
    if module in sys.modules:
        import_module(ours)
    else:
        sys.meta_path.insert(0, _After(module, ours))


class _After:
    """A finder that finds one module by the other finders, and imports ours behind it."""

    def __init__(self, module: str, ours: str) -> None:
        self.module, self.ours = module, ours

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of that module, with a loader that then imports ours; None for any other."""
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
