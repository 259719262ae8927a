"""The checklist "Add a method" of CONTRIBUTING.md, carried out as it is written."""

import pytest
from checklists import carry_out, changed_files, copy_repository, passed, steps
from method_cases import CASES


@pytest.mark.slow
def test_a_method_of_existing_parts_takes_two_files_and_passes_the_shared_tests(tmp_path):
    checklist = steps("Add a method")
    root = copy_repository(tmp_path)
    printed = carry_out(checklist, root)
    by_hand = {step.path for step in checklist if step.how != "run"}
    assert len(by_hand) == 2
    # What is not written by hand is the table of the README, by the command of the checklist.
    assert changed_files(root) == {*by_hand, "README.md"}
    assert "`lora_adapter`" in (root / "README.md").read_text(encoding="utf-8")
    # Four shared tests on each of the paper's models that a method of its kinds is defined on.
    models = [model for name, model in CASES if name == "houlsby" and "bart" not in model]
    assert passed(printed) > 4 * len(models)
