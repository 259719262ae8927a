"""Freed memory stays in the process of a command, unless its environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc is what gives memory back"
)
# Pages of memory that the kernel has to clear for tensors that are made and freed again.
CODE = """
import resource
from lorada.cli.app import importing
with importing():
    import torch
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


def pages(**environment):
    """The pages of a fresh process without a GPU."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    kept |= {"CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=kept
    )
    return int(done.stdout)


def test_a_commands_process_keeps_the_memory_of_freed_tensors():
    assert pages() < 20


def test_settings_of_the_environment_stay():
    assert pages(MALLOC_MMAP_THRESHOLD_="1000000") >= 20  # each tensor is mapped anew
