"""The kernels that ``make kernels`` asks for are those that compute, or the run fails."""

import os
import sys

import pytest
import torch
from programs import printed

# Variable -> what it must have done, of what a process says that multiplies matrices and convolves.
SAID = {
    "ATEN_CPU_CAPABILITY": "capability {}",
    "LORADA_TEST_THREADS": "threads {}",
    "MKL_CBWR": "CNR:{}",
    "ONEDNN_MAX_CPU_ISA": "isa:{}",
}
NAMES = {"default": "DEFAULT", "avx2": "AVX2", "SSE41": "Intel SSE4.1"}
SAY = """
import os, torch
torch.set_num_threads(int(os.environ.get("LORADA_TEST_THREADS", "1")))
torch.randn(8, 8) @ torch.randn(8, 8)
torch.nn.functional.conv2d(torch.randn(1, 8, 64, 64), torch.randn(8, 8, 7, 7))
print("capability", torch.backends.cpu.get_cpu_capability())
print("threads", torch.get_num_threads())
"""


def said(**settings: str) -> list[str]:
    settings |= {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    return printed(sys.executable, "-c", SAY, **settings).replace(",", " ").splitlines()


@pytest.mark.parametrize("name", [name for name in SAID if name in os.environ])
def test_what_was_asked_for_computes(name):
    value = os.environ[name]
    wanted = SAID[name].format(NAMES.get(value, value))
    assert any(wanted in line for line in said()), f"torch here does not heed {name}={value}"


@pytest.mark.more
def test_a_setting_that_is_not_heeded_is_noticed():
    lines = said(ATEN_CPU_CAPABILITY="of another processor", MKL_CBWR="no such branch")
    assert not any("of another" in line or "no such" in line for line in lines)


def test_these_tests_run_in_as_many_threads_as_they_are_told():
    assert torch.get_num_threads() == int(os.environ.get("LORADA_TEST_THREADS", "1"))
