"""The vote of several runs on texts: the commonest answer to each row."""

from collections import Counter
from collections.abc import Sequence


def majority(answers: Sequence[Sequence[str]]) -> list[int]:
    """Vote on each row, and return which run's answer wins: the first that gave the commonest one.

    Where two answers are equally common it is the first of the runs that gave one of them.

    Args:
        answers: runs × rows.

    Returns:
        The place of the winning run, for each row.
    """
    winners = []
    for answers_to_row in zip(*answers, strict=True):
        counts = Counter(answers_to_row)
        highest_count = max(counts.values())
        for run, answer in enumerate(answers_to_row):
            if counts[answer] == highest_count:
                winners.append(run)
                break
    return winners
