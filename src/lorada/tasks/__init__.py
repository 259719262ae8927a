"""TASKS: every task by name; a task turns rows into model inputs and outputs into metrics."""

from lorada.tasks import glue, jsonl
from lorada.tasks.task import Task

TASKS: dict[str, Task] = {
    **glue.GLUE,
    "jsonl": jsonl.TASK,
}

__all__ = ["TASKS", "Task"]
