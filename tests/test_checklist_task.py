"""The checklist "Add a task" of CONTRIBUTING.md, carried out as it is written."""

import os

from checklists import carry_out, changed_files, copy_repository, passed, steps

GENERATED = {"docs/tasks.md", "README.md"}  # by the commands of the checklist


def test_a_task_takes_three_files_and_passes_the_shared_tests(tmp_path):
    checklist = steps("Add a task")
    root = copy_repository(tmp_path)
    printed = carry_out(checklist, root)
    by_hand = {step.path for step in checklist if step.how != "run"}
    assert len(by_hand) == 3
    assert changed_files(root) - GENERATED == by_hand
    assert (
        "| colours | the colour of a thing; exact match |" in (root / "docs/tasks.md").read_text()
    )
    # Of one protocol; one of them twice, for rows to learn and to score. One needs real rows.
    assert passed(printed) == 5 + ("LORADA_DATA" in os.environ)
