"""Which errors are said in one line, and which of several processes writes."""

import errno
import os

import pytest

from lorada.support.error_messages import full_disk_in_one_line, out_of_memory
from lorada.support.processes import is_main_process


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_or_a_quota_that_is_full_is_said_in_one_line(number):
    reason = os.strerror(number)
    with (
        pytest.raises(OSError, match=f"could not save runs/a: {reason}. Free space"),
        full_disk_in_one_line("runs/a", "Free space"),
    ):
        raise OSError(number, reason)


def test_memory_runs_out_of_python_too_which_says_nothing_else():
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not out_of_memory(RuntimeError("no kernel image is available"))


@pytest.mark.parametrize(("rank", "local"), [("0", "0"), ("1", "1"), ("8", "0")])
def test_of_the_processes_of_several_machines_one_writes(monkeypatch, rank, local):
    for name, value in {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is (rank == "0")
