"""Checklists are read and carried out as they are written, or it is an error."""

import pytest
from checklists import Step, carry_out, changed_files, copy_repository, passed, steps
from paths import ROOT

PAGE = """
## Add a thing

1. In `a.py`, after `b = `, or so:

   ```python
       c = 3
   ```

2. New file `folder/d.py`:

   ```python
   d = 4
   ```

3. Run this:

   ```bash
   echo 5 passed
   ```

## Another

1. In `a.py`, before `b = `:

   ```python
   nothing
   ```
"""
STEPS = steps("Add a thing", PAGE)


def test_a_checklist_is_the_code_blocks_of_its_section():
    assert [
        Step("after", "a.py", "b = ", "    c = 3\n"),
        Step("new", "folder/d.py", "", "d = 4\n"),
        Step("run", "", "", "echo 5 passed\n"),
    ] == STEPS


def test_a_checklist_is_carried_out_in_its_folder(tmp_path):
    (tmp_path / "a.py").write_text("if True:\n    b = 2\n    e = 5\n")
    assert passed(carry_out(STEPS, tmp_path)) == 5
    assert (tmp_path / "a.py").read_text() == "if True:\n    b = 2\n    c = 3\n    e = 5\n"
    assert (tmp_path / "folder/d.py").read_text() == "d = 4\n"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (PAGE.replace("In `a.py`, after `b = `, or so:", "Do this:"), "belongs to no step"),
        (PAGE.replace("`b = `, or", "`f = `, or"), "'f = ' begins 0 lines of a.py"),
        (PAGE.replace("echo 5 passed", "echo 5 passed\n   false"), "5 passed"),
        (PAGE.replace("folder/d.py", "a.py"), "a.py is there already"),
    ],
)
def test_a_step_that_cannot_be_followed_is_an_error(page, said, tmp_path):
    (tmp_path / "a.py").write_text("b = 2\n")
    with pytest.raises(AssertionError, match=said):
        carry_out(steps("Add a thing", page), tmp_path)


def test_a_copy_tells_which_files_were_changed(tmp_path):
    root = copy_repository(tmp_path)
    assert changed_files(root) == set()
    (root / "src/lorada/new.py").write_text("")
    (root / "README.md").write_text("")
    assert changed_files(root) == {"src/lorada/new.py", "README.md"}
    assert (ROOT / "README.md").read_text() != ""
