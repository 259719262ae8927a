"""What responses of the training rows are usually like, whatever one or two of them are like.

One response of a thousand words among numbers says nothing about how the others are scored.
"""

from collections.abc import Sequence

ODD = 20  # of so many responses one may be unlike the others
MUCH_LONGER = 2  # times as long as what is usual: a response that is odd


def is_usual(count: int, of: int) -> bool:
    """Whether ``count`` responses ``of`` all are too many to be odd ones."""
    return count > of // ODD


def usual_longest(lengths: Sequence[int]) -> int:
    """The longest of the responses; without a few that are more than twice as long as the others.

    Args:
        lengths: tokens of each response, at least one.
    """
    ordered = sorted(lengths)
    usual = ordered[len(ordered) - 1 - len(ordered) // ODD]
    longest = ordered[-1]
    return usual if longest > MUCH_LONGER * usual else longest
