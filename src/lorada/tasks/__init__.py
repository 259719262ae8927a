"""TASKS: every task by name; a task turns rows into model inputs and outputs into metrics."""

from lorada.tasks import arithmetic, commonsense, glue, jsonl, long_sequence, writing
from lorada.tasks.task import Task

TASKS: dict[str, Task] = {
    **glue.GLUE,
    **writing.WRITING,
    **commonsense.COMMONSENSE,
    **arithmetic.ARITHMETIC,
    **long_sequence.LONG_SEQUENCE,
    "jsonl": jsonl.TASK,
}

__all__ = ["TASKS", "Task"]
