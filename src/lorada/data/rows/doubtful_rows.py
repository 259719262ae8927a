"""Warns of rows to learn from that are allowed and hardly meant: labels that contradict each other.

A classifier learns of two equal texts with two labels that each is as likely as the other.
"""

import logging
from collections import defaultdict

from lorada.data.rows.row_content import content_of
from lorada.data.rows.rows import Rows
from lorada.support.in_words import counted
from lorada.support.row_sources import NAMED

logger = logging.getLogger(__name__)

# The fields of a right answer that one text can have only once. Two people may well give a text two
# scores, and a prompt may have several good responses.
ANSWERS = "label", "labels", "answer"
MOST = 5  # names that a line lists


def warn_of_doubtful(rows: Rows) -> None:
    """Say which classes differ in capital letters alone, and which texts have several labels."""
    spellings = _names_that_differ_in_case(rows.classes)
    if spellings:
        logger.warning(
            "%s: labels that differ in upper and lower case alone are different classes: %s",
            rows.path, ", ".join(spellings[:MOST]),
        )  # fmt: skip
    contradictions = _contradictions(rows)
    if contradictions:
        first, second = contradictions[0]
        first_answer, second_answer = _right_answer(rows, first), _right_answer(rows, second)
        count = counted(len(contradictions), "text")
        logger.warning(
            "%s: %s with different labels in different rows, such as %s (%s) and %s (%s)",
            rows.path, count, rows.place(first), first_answer, rows.place(second), second_answer,
        )  # fmt: skip


def _names_that_differ_in_case(classes: dict[str, int]) -> list[str]:
    """Names that are one name in small letters, with their rows: "Spam: 2, spam: 3"."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[" ".join(name.casefold().split())].append(name)
    names_and_counts = []
    for names in spellings.values():
        if len(names) > 1:
            names_and_counts += [f"{name} ({counted(classes[name], 'row')})" for name in names]
    return names_and_counts


def _contradictions(rows: Rows) -> list[tuple[int, int]]:
    """Of each text with several right answers, the indices of two rows that differ."""
    if rows.form not in (*NAMED, "choice"):
        return []
    first_rows: dict[str, int] = {}  # by what is asked
    pairs: dict[str, tuple[int, int]] = {}
    for index, row in enumerate(rows.rows):
        question = content_of({key: value for key, value in row.items() if key not in ANSWERS})
        first = first_rows.setdefault(question, index)
        if question not in pairs and _right_answer(rows, first) != _right_answer(rows, index):
            pairs[question] = (first, index)
    return list(pairs.values())


def _right_answer(rows: Rows, index: int) -> str:
    """The label of a row, its labels, or its right candidate, in words."""
    row = rows.rows[index]
    if "candidates" in row:
        return str(row["candidates"][row["answer"]])
    if "labels" in row:
        return ", ".join(row["labels"]) or "none"
    return str(row["label"])
