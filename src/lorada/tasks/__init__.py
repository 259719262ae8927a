"""TASKS: every task by name; a task turns rows into model inputs and outputs into metrics."""

from lorada.tasks import arithmetic, commonsense, glue, jsonl
from lorada.tasks.task import Task

TASKS: dict[str, Task] = {
    **glue.GLUE,
    **commonsense.COMMONSENSE,
    **arithmetic.ARITHMETIC,
    "jsonl": jsonl.TASK,
}

__all__ = ["TASKS", "Task"]
