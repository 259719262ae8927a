"""The plugin for vLLM, as far as it runs without vLLM: what it refuses, and its maths.

With vLLM: `make test-vllm`.
"""

import os
import subprocess
import sys

from paths import ROOT

PLUGIN = ROOT / "packages" / "lorada-vllm"
WITHOUT_VLLM = ("test_paged_map.py", "test_refusals.py", "test_step.py")


def test_the_tests_of_the_plugin_that_need_no_vllm_pass():
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-c", PLUGIN / "pyproject.toml"]
    path = os.pathsep.join([str(ROOT / "src"), str(PLUGIN / "src")])
    done = subprocess.run(
        [*command, *(PLUGIN / "tests" / name for name in WITHOUT_VLLM)],
        cwd=PLUGIN,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
