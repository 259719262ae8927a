"""The plugin for vLLM, as far as it runs without vLLM: what it refuses, and its maths.

With vLLM: `make test-vllm`.
"""

import os
import sys

from paths import ROOT
from programs import printed

PLUGIN = ROOT / "packages" / "lorada-vllm"
WITHOUT_VLLM = ("test_paged_map.py", "test_refusals.py", "test_step.py")


def test_the_tests_of_the_plugin_that_need_no_vllm_pass():
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-c", PLUGIN / "pyproject.toml"]
    path = os.pathsep.join([str(ROOT / "src"), str(PLUGIN / "src")])
    tests = [PLUGIN / "tests" / name for name in WITHOUT_VLLM]
    assert "skipped" not in printed(*command, *tests, folder=PLUGIN, PYTHONPATH=path)
