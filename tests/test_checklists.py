"""The checklists of CONTRIBUTING.md, carried out step by step in a copy of the repository.

A step of a checklist is a code block under a line that says what to do with it::

    1. In `PATH`, before `ANCHOR`:     inserts the block above the line that begins with ANCHOR
    2. In `PATH`, after `ANCHOR`:      inserts it below that line
    3. New file `PATH`:                writes the file
    4. Run:                            runs the block in a shell, from the root of the repository

ANCHOR is the beginning of exactly one line of the file, without its indentation.
"""

import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from method_cases import CASES
from paths import ROOT
from programs import printed

# What a checklist may read or change.
COPIED = ("src", "tests", "docs", "scripts", "studies", "benchmarks", "README.md",
          "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")  # fmt: skip
STEP = re.compile(
    r"^ *\d+\. (?:In `(?P<path>[^`]+)`, (?P<how>before|after) `(?P<anchor>[^`]+)`"
    r"|New file `(?P<new>[^`]+)`|Run)[^\n]*:\n\n(?P<block> *```.*?```)$",
    flags=re.MULTILINE | re.DOTALL,
)


def copy_repository(folder: Path) -> Path:
    """Copy what a checklist reads or changes into a new folder, and return that."""
    root = folder / "repository"
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, root / name)
    return root


def followed(section: str, folder: Path) -> tuple[Path, set[str], int]:
    """A copy in which a checklist was carried out, the files written by hand, the passed tests.

    Its commands have this Python, and the ``src`` of the copy.
    """
    root = copy_repository(folder)
    environment = {
        "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    body = page.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    steps = list(STEP.finditer(body))
    assert len(steps) == body.count("```") // 2, f"a code block of {section!r} belongs to no step"
    by_hand, said = set(), ""
    for step in steps:
        code = "\n".join(textwrap.dedent(step["block"]).splitlines()[1:-1]) + "\n"
        name = step["path"] or step["new"]
        if not name:
            said += printed("bash", "-euc", code, folder=root, **environment)
            continue
        by_hand.add(name)
        path = root / name
        if step["new"]:
            assert not path.exists(), f"{name} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        at = [i for i, line in enumerate(lines) if line.lstrip().startswith(step["anchor"])]
        assert len(at) == 1, f"{step['anchor']!r} begins {len(at)} lines of {name}, not one"
        lines.insert(at[0] + (step["how"] == "after"), code)
        path.write_text("".join(lines), encoding="utf-8")
    return root, by_hand, int(re.findall(r"(\d+) passed", said)[-1])


def changed_files(root: Path) -> set[str]:
    """The files of a copy that are new or differ from the repository's, by their paths."""
    skipped = {"__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", ".mypy_cache"}
    found = set()
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and not skipped & set(name.parts):
            source = ROOT / name
            if not source.is_file() or source.read_bytes() != path.read_bytes():
                found.add(str(name))
    return found


@pytest.mark.slow
def test_a_method_of_existing_parts_takes_three_files_and_passes_the_shared_tests(tmp_path):
    root, by_hand, count = followed("Add a method", tmp_path)
    assert len(by_hand) == 3
    # The rest is written by the commands of the checklist.
    written = {"README.md", "docs/catalogue.md", "docs/catalogue/lora_adapter.svg"}
    assert changed_files(root) == by_hand | written
    assert "`lora_adapter`" in (root / "README.md").read_text(encoding="utf-8")
    # Three shared tests on each of the paper's models that a method of its kinds is defined on.
    models = [model for name, model in CASES if name == "houlsby" and "bart" not in model]
    assert count > 3 * len(models)


def test_a_tuner_is_added_in_seven_files_and_its_contracts_pass(tmp_path):
    root, by_hand, count = followed("Add a tuner", tmp_path)
    # Its own test, those of every tuner, and those of a method on five models.
    assert count >= 1 + 8 + 15
    assert len(by_hand) <= 7
    assert changed_files(root) <= {*by_hand, "README.md"}  # whose table of methods is generated


def test_the_map_is_changed_in_one_file_and_its_tests_pass(tmp_path):
    root, by_hand, count = followed("Change the map", tmp_path)
    assert by_hand == {"src/lorada/tuners/lmam.py", "tests/tuners/test_gated_map.py"}
    assert changed_files(root) == by_hand
    assert count > 5


@pytest.mark.more
def test_a_task_takes_three_files_and_passes_the_shared_tests(tmp_path):
    root, by_hand, count = followed("Add a task", tmp_path)
    assert len(by_hand) == 3
    written_by_commands = {"docs/tasks.md", "README.md"}
    assert changed_files(root) - written_by_commands == by_hand
    summary = "| colours | the colour of a thing; exact match |"
    assert summary in (root / "docs/tasks.md").read_text()
    # Of one protocol; one of them twice, for rows to learn and to score. One needs real rows.
    assert count == 5 + ("LORADA_DATA" in os.environ)
