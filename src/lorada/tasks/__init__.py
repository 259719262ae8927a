"""``TASKS``: every task, by name. A task makes inputs from rows, and metrics from outputs."""

from lorada.tasks.arithmetic import ARITHMETIC
from lorada.tasks.commonsense import COMMONSENSE
from lorada.tasks.glue import GLUE
from lorada.tasks.jsonl import TASK as JSONL
from lorada.tasks.long_sequence import LONG_SEQUENCE
from lorada.tasks.task import Task
from lorada.tasks.writing import WRITING

TASKS: dict[str, Task] = {
    **GLUE,
    **WRITING,
    **COMMONSENSE,
    **ARITHMETIC,
    **LONG_SEQUENCE,
    "jsonl": JSONL,
}

__all__ = ["TASKS", "Task"]
