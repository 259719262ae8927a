"""The answer that most rows have: what a model is set beside that has learned nothing else."""

from collections import Counter
from typing import Any

from lorada.data.chats import ASSISTANT
from lorada.data.rows.row_content import answer_of
from lorada.data.rows.rows import Rows
from lorada.support.row_sources import Row


def commonest_answer(rows: Rows) -> Any:
    """The answer that most rows have; of scores their mean; None if rows have no answers."""
    if rows.form == "text":
        return None
    if rows.form == "score":
        return sum(float(row["score"]) for row in rows.rows) / len(rows.rows)
    counts = _counts(rows)
    if not counts:
        return None
    answer = counts.most_common(1)[0][0]
    return list(answer) if rows.form == "labels" else answer


def repeated_answer(rows: Rows) -> Any:
    """The commonest answer, or None where all answers are different and none is common."""
    if rows.form not in ("text", "score"):
        highest_count = max(_counts(rows).values(), default=1)
        if highest_count == 1:
            return None
    return commonest_answer(rows)


def _counts(rows: Rows) -> Counter[Any]:
    """How many rows have each answer."""
    if rows.form == "labels":
        return Counter(tuple(row["labels"]) for row in rows.rows)
    if rows.form == "label":
        return Counter(str(row["label"]) for row in rows.rows)
    if rows.form == "choice":
        return Counter(row["answer"] for row in rows.rows)
    return Counter(answer_of(row) for row in rows.rows if _is_answered(row))


def _is_answered(row: Row) -> bool:
    """Whether a row is no chat, or one that ends with a turn of the assistant."""
    return "messages" not in row or row["messages"][-1]["role"] == ASSISTANT
