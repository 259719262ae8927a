"""Refusals: one line that says what cannot be served and what to do instead."""

import sys
from typing import NoReturn


class RefusedError(RuntimeError):
    """A folder or a setting that cannot be served.

    No ValueError: vLLM reads configs inside of pydantic, which makes several lines of a ValueError.
    """


def refuse(text: str) -> NoReturn:
    """Stop with one line: a server prints it and exits with code 2, a library call raises.

    Raises:
        RefusedError: in a program that imports vLLM.
        SystemExit: in a server that vLLM started, which would print a stack trace otherwise.
    """
    line = "lorada-vllm: " + " ".join(text.split())
    if _is_server():
        sys.stderr.write(line + "\n")
        raise SystemExit(2)
    raise RefusedError(line)


def _is_server() -> bool:
    """Whether this process is `python -m vllm.…` or the command `vllm`."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None) or ""
    return name.partition(".")[0] == "vllm" or sys.argv[0].endswith("/vllm")
