"""What responses of the training rows are usually like, whatever one or two of them are like.

One response of a thousand words among numbers says nothing about how the others are scored.
"""

from collections.abc import Sequence

ODD = 20  # of so many responses one may be unlike the others
MUCH_LONGER = 2  # times as long as what is usual: a response that is odd


def is_usual(count: int, total: int) -> bool:
    """Whether ``count`` of ``total`` responses are too many to be odd ones."""
    return count > total // ODD


def usual_longest(lengths: Sequence[int]) -> int:
    """The longest of the responses; without a few that are more than twice as long as the others.

    Args:
        lengths: tokens of each response, at least one.
    """
    shortest_first = sorted(lengths)
    odd_count = len(lengths) // ODD
    usual = shortest_first[len(lengths) - 1 - odd_count]
    longest = shortest_first[-1]
    return usual if longest > MUCH_LONGER * usual else longest
