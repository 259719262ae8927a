"""Decides whether ``import lorada`` imports torch."""

import os
import sys
from itertools import pairwise

# Set in the environment of a process that runs jobs, which imports what each of them needs.
WITHOUT_TORCH = "LORADA_WITHOUT_TORCH"


def without_torch() -> bool:
    """Whether torch and PEFT are left to the modules that use them: in commands and their jobs.

    The variable is removed, so that a program which this process starts imports lorada as usual.
    """
    # While Python still looks for the module of `python -m`, sys.argv begins with -m.
    as_module = sys.argv[:1] == ["-m"] and ("-m", "lorada.cli") in pairwise(sys.orig_argv)
    for_jobs = os.environ.pop(WITHOUT_TORCH, None) is not None
    return for_jobs or as_module or "lorada_cli" in sys.modules
