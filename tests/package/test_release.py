"""What a tag publishes: versions and notes that agree, and workflows whose actions are pinned."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from paths import ROOT

TREE = (".ci/release.py", "CHANGELOG.md", "pyproject.toml", "src/lorada/support/version.py",
        "packages/lorada-vllm/pyproject.toml")  # fmt: skip
HEADING = re.compile(r"^## \[(.+)\] - .+$", flags=re.MULTILINE)
# Stands in for the programs that build and check: it writes what it was called with, and a file.
BUILD = """
import pathlib, sys
with open("called.txt", "a") as file:
    print("MODULE", *sys.argv[1:], file=file)
if "--outdir" in sys.argv:
    dist = pathlib.Path(sys.argv[sys.argv.index("--outdir") + 1])
    dist.mkdir(exist_ok=True)
    (dist / pathlib.Path(sys.argv[-1]).name).touch()
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a release reads, in which the newest version of the changelog has a day."""
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    text = HEADING.sub(r"## [\1] - 2026-12-31", changelog.read_text(encoding="utf-8"), count=1)
    changelog.write_text(text, encoding="utf-8")
    for module in ("build", "twine"):
        (tmp_path / f"{module}.py").write_text(BUILD.replace("MODULE", module))
    return tmp_path


def released(tree, tag):
    command = [sys.executable, ".ci/release.py", tag]
    environment = {"PYTHONPATH": str(tree)}
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)


def version():
    return HEADING.search((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[1]


def test_a_tag_of_the_version_builds_both_packages_and_the_notes_of_that_version(tree):
    done = released(tree, f"v{version()}")
    assert (done.returncode, done.stderr) == (0, "")
    called = (tree / "called.txt").read_text().splitlines()
    assert [line.split()[0] for line in called] == ["build", "build", "twine"]
    assert called[1].endswith("packages/lorada-vllm")
    notes = (tree / "build/notes.md").read_text(encoding="utf-8")
    assert "LmamConfig" in notes
    assert "\n## " not in notes


def test_a_tag_is_refused_in_one_line_if_something_says_otherwise(tree):
    tag = f"v{version()}"
    changelog = tree / "CHANGELOG.md"
    dated = changelog.read_text(encoding="utf-8")
    changelog.write_text(dated.replace("2026-12-31", "unreleased"), encoding="utf-8")
    undated = released(tree, tag)
    changelog.write_text("# Changelog\n")
    unnamed = released(tree, tag)
    other = released(tree, "v99.0.0")
    unlike = released(tree, "latest")
    lines = [done.stderr for done in (undated, unnamed, other, unlike)]
    assert [done.returncode for done in (undated, unnamed, other, unlike)] == [1] * 4
    assert lines == [
        f"CHANGELOG.md says [{version()}] - unreleased: write the day of the release, as "
        "2026-12-31\n",
        f"CHANGELOG.md has no section [{version()}]: write one\n",
        f"lorada has version {version()}, and the tag is v99.0.0: make them the same\n",
        "latest is no tag of a release: take one such as v0.1.0\n",
    ]
    assert not (tree / "dist").exists()


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_yaml_whose_actions_are_pinned_and_whose_needs_are_there(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        assert job.get("needs") in {None, *jobs}
        for step in job.get("steps", []):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40))


def test_the_licence_is_the_same_in_both_packages():
    copied = (ROOT / "packages/lorada-vllm/LICENSE").read_text(encoding="utf-8")
    assert copied == (ROOT / "LICENSE").read_text(encoding="utf-8")
