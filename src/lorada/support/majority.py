"""The vote of several runs on texts: the commonest answer to each row."""

from collections import Counter
from collections.abc import Sequence


def majority(answers: Sequence[Sequence[str]]) -> list[int]:
    """Of each row the first run that gave the commonest answer.

    Where two answers are equally common it is the first of the runs that gave one of them.

    Args:
        answers: runs × rows.
    """
    runs = []
    for answers_to_row in zip(*answers, strict=True):
        counts = Counter(answers_to_row)
        most = max(counts.values())
        commonest = [run for run, text in enumerate(answers_to_row) if counts[text] == most]
        runs.append(commonest[0])
    return runs
