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
\t@chmod +x .venv/bin/python && touch .venv/here
\t@echo "$(CURDIR): check"; ls ../shared; echo "9 passed, 1 skipped in 700.12s (0:11:40)"
\t@exit $(CHECK)
test-more:
\t@echo "$(CURDIR): test-more"
docs:
\t@echo "$(CURDIR): docs"
dist:
\t@echo "$(CURDIR): dist"
test:
\t@test -e .venv/here && test -f ../shared/paper.md
\t@echo "$(CURDIR): test $(TESTS)"; echo "FAILED tests/a.py::b"; echo "1 failed, 3 passed in 9.5s"
\t@exit $(TEST)
"""


@pytest.fixture
def checkout(tmp_path):
    """A repository with our .ci/run, beside data."""
    root = tmp_path / "checkout"
    (root / ".ci").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "paper.md").touch()
    shutil.copy(ROOT / ".ci" / "run", root / ".ci")
    (root / "Makefile").write_text(MAKEFILE)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(root)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    return root


def run(checkout, **exits):
    """Exit code, and what is printed."""
    scratch = checkout.parent / "scratch"
    scratch.mkdir()
    codes = {"CHECK": "0", "TEST": "0", **exits}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [checkout / ".ci" / "run"], capture_output=True, text=True,
        env={**kept, "TMPDIR": str(scratch), **codes},
    )  # fmt: skip
    assert not list(scratch.iterdir()), "the clones are still there"
    return done.returncode, [line for line in done.stdout.splitlines() if "make" not in line]


def test_ci_checks_a_clone_named_lorada_and_tests_one_behind_a_blank(checkout):
    code, lines = run(checkout)
    assert code == 0
    asked = [line for line in lines if ": " in line and "PATHS" not in line]
    places = [line.partition(": ")[0] for line in asked]
    assert [line.partition(": ")[2].split()[0] for line in asked] == [
        "check", "test-more", "docs", "dist", "python", "test",
    ]  # fmt: skip
    assert [place.rpartition("/")[2] for place in places] == ["lorada"] * 4 + ["my clone"] * 2
    assert " " in os.path.dirname(places[4])
    chosen = asked[5].partition(": test ")[2].split()
    assert chosen
    assert all((ROOT / name).exists() for name in chosen)


def test_ci_ends_with_the_last_lines_of_pytest(checkout):
    _, lines = run(checkout)
    named, first, blank, *second = lines[-5:]
    assert named.endswith("/lorada:")
    assert first.startswith("9 passed, 1 skipped in")
    assert blank.endswith("/my clone:")
    assert second == ["FAILED tests/a.py::b", "1 failed, 3 passed in 9.5s"]


@pytest.mark.parametrize("failing", ["CHECK", "TEST"])
def test_ci_fails_where_one_of_them_fails_and_still_prints_what_pytest_said(checkout, failing):
    code, lines = run(checkout, **{failing: "1"})
    assert code != 0
    assert lines[-1] == {
        "CHECK": "9 passed, 1 skipped in 700.12s (0:11:40)", "TEST": "1 failed, 3 passed in 9.5s",
    }[failing]  # fmt: skip
