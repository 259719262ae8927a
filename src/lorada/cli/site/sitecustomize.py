"""Makes the adapter types of lorada known to PEFT in a process that never imports lorada.

`lorada run` puts this folder first on PYTHONPATH, and Python imports this file as it starts, in
the command and in its children. A process that never imports peft loads only this file. Any Python
may import it, so it uses only old syntax and the standard library.
"""

import os
import sys


class _After:
    """A finder that finds some modules by the other finders, and calls a function after each."""

    def __init__(self, functions):  # type: ignore[no-untyped-def]
        self.functions = functions  # by the names of the modules

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """The spec of such a module, with a loader that calls its function at its end; or None."""
        if name not in self.functions:
            return None
        # Not every look-up ends in an import, so this finder waits until the module is imported.
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (f.find_spec(name, path, target) for f in others if hasattr(f, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader):  # type: ignore[no-untyped-def]
        execute = loader.exec_module

        def execute_and_register(module):  # type: ignore[no-untyped-def]
            execute(module)
            function = self.functions.pop(module.__name__, None)
            if not self.functions and self in sys.meta_path:
                sys.meta_path.remove(self)
            if function is not None:
                function()

        loader.exec_module = execute_and_register


def _register():  # type: ignore[no-untyped-def]
    try:
        import lorada  # noqa: F401
    except Exception as error:  # the command may work without it
        _report(error)


def _register_config():  # type: ignore[no-untyped-def]
    """Register the type of exported configs, which transformers may read before peft is there.

    Its module is loaded by its path, since lorada cannot be imported while transformers is.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    here = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(here, "..", "..", "tuners", "exported_config.py")
    try:
        spec = spec_from_file_location("lorada_exported_config", path)
        module = module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        module.register()
    except Exception as error:  # the command may work without it
        _report(error)


def _report(error):  # type: ignore[no-untyped-def]
    reason = " ".join(str(error).split())
    sys.stderr.write("lorada run: " + sys.executable + " cannot import lorada: " + reason + "\n")


def _run_next_sitecustomize():  # type: ignore[no-untyped-def]
    """Import the sitecustomize that Python would have found without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    this = sys.modules.pop(__name__)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if getattr(error, "name", "sitecustomize") != "sitecustomize":
            raise
        sys.modules[__name__] = this


if "peft" in sys.modules:  # a .pth file came first
    _register()
elif sys.version_info >= (3, 6):  # noqa: UP036 - older Pythons call other methods of finders
    configs = "transformers.models.auto.configuration_auto"
    sys.meta_path.insert(0, _After({"peft": _register, configs: _register_config}))
_run_next_sitecustomize()
