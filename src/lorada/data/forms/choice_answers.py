"""Which candidate of a choice is right: an answer may be its text, its letter or its number."""

import string
from collections.abc import Callable

from lorada.support.row_sources import Row


def answers_as_indices(rows: list[Row], where: Callable[[int], str]) -> list[Row]:
    """Rows of choices, each ``answer`` as the index of one of its ``candidates``.

    Texts are read in one way in all rows: as candidates if they all are, else as letters or as
    numbers, whichever most of them are. So "2" among the candidates 1, 2 and 3 is the text.

    Args:
        rows: rows with ``candidates`` and ``answer``.
        where: index of a row → its place, for an error.

    Raises:
        ValueError: for an answer that is none of its candidates in the way that most rows are read.
    """
    best_indices: list[int | None] = []
    most_read = -1
    for index_by in (_index_by_text, _index_by_letter, _index_by_number):
        indices = [_answer_index(row, index_by) for row in rows]
        read = sum(index is not None for index in indices)
        if read > most_read:  # of two ways that read as many, the first is taken
            best_indices, most_read = indices, read
    converted = []
    for number, (row, index) in enumerate(zip(rows, best_indices, strict=True)):
        if index is None:
            raise ValueError(
                f"{where(number)}: answer must be the index of one of the candidates, from 0, its "
                f"letter or its text: {row['answer']!r}"
            )
        converted.append({**row, "answer": index})
    return converted


def _answer_index(row: Row, index_by: Callable[[str, list[str]], int]) -> int | None:
    """The index of a row's right candidate, an answer that is a text read in one way; or None."""
    answer = row["answer"]
    texts = [text.strip() for text in row["candidates"]]
    if isinstance(answer, str):
        index = index_by(answer.strip(), texts)
    elif type(answer) is int:  # true and false are no indices
        index = answer
    else:
        return None
    return index if 0 <= index < len(texts) else None


def _index_by_text(answer: str, texts: list[str]) -> int:
    """The index of the candidate that an answer is; -1 for none."""
    without_zeros = answer.lstrip("0") or "0"  # 02 in a table of numbers is 2
    for text in (answer, without_zeros):
        if text in texts:
            return texts.index(text)
    return -1


def _index_by_letter(answer: str, texts: list[str]) -> int:
    """The index that a letter stands for; -1 for another text."""
    if len(answer) != 1:
        return -1
    return string.ascii_uppercase.find(answer.upper())


def _index_by_number(answer: str, texts: list[str]) -> int:
    """The index that digits are; -1 for another text."""
    return int(answer) if answer.isdecimal() else -1
