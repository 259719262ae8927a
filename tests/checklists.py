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
from typing import NamedTuple

from paths import ROOT
from programs import printed

# What a checklist may read or change.
COPIED = ("src", "tests", "docs", "scripts", "benchmarks", "README.md", "CONTRIBUTING.md",
          "CHANGELOG.md", "LICENSE", "pyproject.toml")  # fmt: skip
STEP = re.compile(
    r"^ *\d+\. (?:In `(?P<path>[^`]+)`, (?P<how>before|after) `(?P<anchor>[^`]+)`"
    r"|New file `(?P<new>[^`]+)`|Run)[^\n]*:\n\n(?P<block> *```.*?```)$",
    flags=re.MULTILINE | re.DOTALL,
)


class Step(NamedTuple):
    """One step: ``before`` or ``after`` a line of a file, a ``new`` file, or a ``run``."""

    how: str
    path: str
    anchor: str
    code: str


def steps(section: str) -> list[Step]:
    """The steps of a section of CONTRIBUTING.md, in their order."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    body = page.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    found = []
    for match in STEP.finditer(body):
        code = "\n".join(textwrap.dedent(match["block"]).splitlines()[1:-1]) + "\n"
        how = match["how"] or ("new" if match["new"] else "run")
        found.append(Step(how, match["path"] or match["new"] or "", match["anchor"] or "", code))
    assert len(found) == body.count("```") // 2, f"a code block of {section!r} belongs to no step"
    return found


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


def carry_out(checklist: list[Step], root: Path) -> str:
    """Follow every step in a copy of the repository, and return what the commands printed.

    They have this Python, and the ``src`` of the copy.
    """
    environment = {
        "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    said = ""
    for step in checklist:
        if step.how == "run":
            said += printed("bash", "-euc", step.code, folder=root, **environment)
            continue
        path = root / step.path
        if step.how == "new":
            assert not path.exists(), f"{step.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.code, encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        at = [i for i, line in enumerate(lines) if line.lstrip().startswith(step.anchor)]
        assert len(at) == 1, f"{step.anchor!r} begins {len(at)} lines of {step.path}, not one"
        lines.insert(at[0] + (step.how == "after"), step.code)
        path.write_text("".join(lines), encoding="utf-8")
    return said


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
