"""Imports lorada in another program, so that its PEFT and transformers load what lorada saves.

`lorada run` puts this folder first on PYTHONPATH, and Python imports this file as it starts, in
the command and in its children. `import lorada` needs only the standard library, and does the rest
once peft is imported. Any Python may import this file, so it uses only old syntax.
"""

import sys
from importlib.util import find_spec

try:
    import lorada  # noqa: F401
except Exception as error:  # the command may work without it
    if find_spec("peft") is not None:
        reason = " ".join(str(error).split())
        message = "lorada run: " + sys.executable + " cannot import lorada: " + reason
        sys.stderr.write(message + "\n")
