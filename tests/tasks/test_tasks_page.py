"""docs/tasks.md says what TASKS has."""

from tasks_page import NOTES, PAGE, page

from lorada.tasks import TASKS


def test_the_page_says_what_tasks_there_are():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_notes_are_of_benchmarks_that_there_are():
    assert NOTES.keys() <= {task.benchmark for task in TASKS.values()}
