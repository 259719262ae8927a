"""The first hour of a new user goes well, with nothing but the README and the guides."""

import importlib.util
import os
import subprocess
import sys

import pytest
from paths import TESTS


@pytest.mark.more
@pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="needs the extra serve")
def test_the_first_hour_goes_well(tmp_path):
    done = subprocess.run(
        [sys.executable, TESTS / "first_hour.py", tmp_path], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.splitlines()[-1] == "the first hour went well"
