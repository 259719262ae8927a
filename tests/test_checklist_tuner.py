"""The checklist "Add a tuner" of CONTRIBUTING.md, carried out as it is written."""

import pytest
from checklists import carry_out, changed_files, copy_repository, passed, steps


@pytest.mark.slow
def test_a_tuner_is_added_in_five_files_and_its_contracts_pass(tmp_path):
    checklist = steps("Add a tuner")
    root = copy_repository(tmp_path)
    printed = carry_out(checklist, root)
    # Its own test, those of every tuner, and those of a method on five models.
    assert passed(printed) > 1 + 12 + 15
    by_hand = {step.path for step in checklist if step.path}
    assert len(by_hand) <= 5
    assert changed_files(root) <= {*by_hand, "README.md"}  # whose table of methods is generated
