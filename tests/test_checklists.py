"""The checklists of CONTRIBUTING.md, carried out as they are written."""

import os
import re
from pathlib import Path

import pytest
from checklists import carry_out, changed_files, copy_repository, steps
from method_cases import CASES


def followed(section: str, folder: Path) -> tuple[Path, set[str], int]:
    """A copy in which a checklist was carried out, the files written by hand, the passed tests."""
    checklist, root = steps(section), copy_repository(folder)
    passed = re.findall(r"(\d+) passed", carry_out(checklist, root))[-1]
    return root, {step.path for step in checklist if step.how != "run"}, int(passed)


@pytest.mark.slow
def test_a_method_of_existing_parts_takes_two_files_and_passes_the_shared_tests(tmp_path):
    root, by_hand, count = followed("Add a method", tmp_path)
    assert len(by_hand) == 2
    # What is not written by hand is the table of the README, by the command of the checklist.
    assert changed_files(root) == {*by_hand, "README.md"}
    assert "`lora_adapter`" in (root / "README.md").read_text(encoding="utf-8")
    # Four shared tests on each of the paper's models that a method of its kinds is defined on.
    models = [model for name, model in CASES if name == "houlsby" and "bart" not in model]
    assert count > 4 * len(models)


def test_a_tuner_is_added_in_six_files_and_its_contracts_pass(tmp_path):
    root, by_hand, count = followed("Add a tuner", tmp_path)
    # Its own test, those of every tuner, and those of a method on five models.
    assert count >= 1 + 11 + 15
    assert len(by_hand) <= 6
    assert changed_files(root) <= {*by_hand, "README.md"}  # whose table of methods is generated


def test_a_task_takes_three_files_and_passes_the_shared_tests(tmp_path):
    root, by_hand, count = followed("Add a task", tmp_path)
    assert len(by_hand) == 3
    written_by_commands = {"docs/tasks.md", "README.md"}
    assert changed_files(root) - written_by_commands == by_hand
    summary = "| colours | the colour of a thing; exact match |"
    assert summary in (root / "docs/tasks.md").read_text()
    # Of one protocol; one of them twice, for rows to learn and to score. One needs real rows.
    assert count == 5 + ("LORADA_DATA" in os.environ)
