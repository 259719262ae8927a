"""What a command, or ``import lorada``, takes to start: large packages only where they are used."""

import sys

import pytest
from programs import printed

HEAVY = ("torch", "peft", "transformers", "matplotlib")


MAIN = """
try: lorada.cli.main()
except SystemExit as end: assert not end.code
"""


def printed_by(code: str) -> list[str]:
    """What a Python process prints, and which of the heavy packages it has loaded at its end."""
    ending = f"\nprint('loaded', [n for n in {HEAVY} if n in sys.modules])"
    return printed(sys.executable, "-c", "import sys, lorada.cli\n" + code + ending).splitlines()


@pytest.mark.parametrize("words", ["--help", "train --help", "--version", "methods",
                                   "methods lorada_la", "methods --json"])  # fmt: skip
def test_commands_that_list_need_no_torch(words):
    assert printed_by(f"sys.argv = ['lorada', *{words.split()}]{MAIN}")[-1] == "loaded []"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("params --method lora+shi", ["lora+shira"]),
        ("compare --methods ia3,bit", ["ia3,bitfit"]),
        ("train --model smol", ["smollm2-135m"]),
        ("train --task rte,boo", ["rte,boolq"]),
    ],
)
def test_a_shell_completes_names_without_torch(typed, found, monkeypatch):
    monkeypatch.setenv("_LORADA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"lorada {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert printed_by(f"sys.argv = ['lorada']{MAIN}") == [*found, "loaded []"]


def test_no_garbage_is_looked_for_while_torch_is_imported_nor_among_modules_later():
    code = """
import gc
from lorada.cli.app import importing
with importing():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
kept = gc.get_freeze_count()
assert kept > 50_000
with importing():  # a second time there is nothing to import
    assert gc.isenabled()
assert gc.get_freeze_count() == kept
"""
    assert printed_by(code)[-1] == "loaded ['torch']"
