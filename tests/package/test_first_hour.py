"""The first hour of a new user goes well, with nothing but the README and the guides."""

import importlib.util
import sys

import pytest
from paths import TESTS
from programs import printed


@pytest.mark.more
@pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="needs the extra serve")
def test_the_first_hour_goes_well(tmp_path):
    out = printed(sys.executable, TESTS / "first_hour.py", tmp_path, HF_HUB_OFFLINE="1")
    assert out.splitlines()[-1] == "the first hour went well"
