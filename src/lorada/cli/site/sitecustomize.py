"""Imports lorada in another program, so that its PEFT and transformers load what lorada saves.

`lorada run` puts this folder first on PYTHONPATH, and Python imports this file as it starts, in
the command and in its children. `import lorada` needs only the standard library, and does the rest
once peft is imported. Any Python may import this file, so it uses only old syntax.
"""

import os
import sys
from importlib.util import find_spec


def _import_lorada():  # type: ignore[no-untyped-def]
    try:
        import lorada  # noqa: F401
    except Exception as error:  # the command may work without it
        if find_spec("peft") is not None:
            reason = " ".join(str(error).split())
            message = "lorada run: " + sys.executable + " cannot import lorada: " + reason
            sys.stderr.write(message + "\n")


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


_import_lorada()
_run_next_sitecustomize()
