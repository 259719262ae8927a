"""Every package that our code imports is one that pyproject.toml names, or is known to come along.

A package that only happens to be installed is missing as soon as another project drops it.
"""

import re
import sys
import tomllib
from importlib import metadata

import pytest
from paths import ROOT
from test_architecture import imported_modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("src/lorada", "tests", "benchmarks", "scripts")
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
    "markupsafe": "jinja2", "onnx-ir": "onnxscript",
    "psutil": "accelerate", "pyarrow": "datasets", "pandas": "datasets",
}  # fmt: skip
# One script says in its first lines how to install what it needs; PEFT's own suite is a package
# called tests; another sitecustomize may stand behind ours.
ELSEWHERE = {"reasoning_gym", "tests", "sitecustomize"}


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
