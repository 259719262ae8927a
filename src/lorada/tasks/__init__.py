"""TASKS: every task by name; a task turns rows into model inputs and outputs into metrics."""

from lorada.tasks import jsonl
from lorada.tasks.jsonl import Task

TASKS: dict[str, Task] = {
    "jsonl": jsonl.TASK,
}

__all__ = ["TASKS", "Task"]
