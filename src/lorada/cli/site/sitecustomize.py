"""Makes the adapter types of lorada known to PEFT in a process that never imports lorada.

`lorada run` puts this folder first on PYTHONPATH, and Python imports this file as it starts, in
the command and in its children. A process that never imports peft loads only this file. Any Python
may import it, so it uses only old syntax and the standard library.
"""

import os
import sys


class _AfterPeft:
    """A finder that finds peft by the other finders, and imports lorada after it."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """The spec of peft, with a loader that registers our types at its end; else None."""
        if name == "torch":
            _silence()
        if name != "peft":
            return None
        # Not every look-up ends in an import, so this finder stays until peft is imported.
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
            if module.__name__ == "peft" and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = execute_and_register


def _silence():  # type: ignore[no-untyped-def]
    """Silence messages of other libraries, as the commands of lorada do."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(here, "..", "..", "support", "quiet.py")
    names = {"__name__": "lorada_quiet"}
    try:
        with open(path) as file:
            exec(compile(file.read(), path, "exec"), names)
        names["silence"]()  # type: ignore[operator]
    except Exception as error:  # the command works without it
        sys.stderr.write("lorada run: " + str(error) + "\n")


def _register():  # type: ignore[no-untyped-def]
    try:
        import lorada  # noqa: F401
    except Exception as error:  # the command may work without it
        reason = " ".join(str(error).split())
        sys.stderr.write(
            "lorada run: " + sys.executable + " cannot import lorada: " + reason + "\n"
        )


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
    sys.meta_path.insert(0, _AfterPeft())
_run_next_sitecustomize()
