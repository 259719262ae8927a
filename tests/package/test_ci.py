"""What CI runs: two clones, and both results at the end. make and Python are stand-ins."""

import os
import shutil
import subprocess

import pytest
from paths import ROOT

# `check` installs what it needs, as the real one does; a Python that only says what it was asked.
MAKEFILE = """
check:
\t@mkdir -p .venv/bin && printf '#!/bin/sh\\necho "$$PWD: python $$*"\\n' > .venv/bin/python
\t@chmod +x .venv/bin/python
\t@echo "$(CURDIR): check"; echo "9 passed, 1 skipped in 700.12s (0:11:40)"; exit $(CHECK)
test-more docs dist:
\t@echo "$(CURDIR): $@"
test:
\t@test -f ../shared/paper.md
\t@echo "$(CURDIR): test $(TESTS)"; echo "FAILED tests/a.py::b"; echo "1 failed, 3 passed in 9.5s"
\t@exit $(TEST)
"""


@pytest.mark.parametrize("failing", ["", "CHECK", "TEST"])
def test_ci_checks_two_clones_and_ends_with_what_pytest_said_of_both(tmp_path, failing):
    root, scratch = tmp_path / "checkout", tmp_path / "scratch"
    for folder in (root / ".ci", scratch, tmp_path / "shared"):
        folder.mkdir(parents=True)
    (tmp_path / "shared" / "paper.md").touch()
    shutil.copy(ROOT / ".ci" / "run", root / ".ci")
    (root / "Makefile").write_text(MAKEFILE)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(root)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    exits = {"CHECK": "0", "TEST": "0", failing: "1"} if failing else {"CHECK": "0", "TEST": "0"}
    done = subprocess.run(
        [root / ".ci" / "run"], capture_output=True, text=True,
        env={**kept, "TMPDIR": str(scratch), **exits},
    )  # fmt: skip
    assert not list(scratch.iterdir()), "the clones are still there"
    assert (done.returncode != 0) == bool(failing)
    lines = [line for line in done.stdout.splitlines() if "make" not in line]
    passed, failed = "9 passed, 1 skipped in 700.12s (0:11:40)", "1 failed, 3 passed in 9.5s"
    if failing == "CHECK":
        assert lines[-1] == passed
        return
    named, first, blank, *second = lines[-5:]
    assert named.endswith("/lorada:")
    assert blank.endswith("/a blank/my clone:")
    assert [first, *second] == [passed, "FAILED tests/a.py::b", failed]
    asked = [line.partition(": ")[::2] for line in lines if ": " in line and "PATHS" not in line]
    assert [words.split()[0] for _, words in asked] == [
        "check", "test-more", "docs", "dist", "python", "test",
    ]  # fmt: skip
    chosen = asked[5][1].split()[1:]
    assert chosen
    assert all((ROOT / name).exists() for name in chosen)
