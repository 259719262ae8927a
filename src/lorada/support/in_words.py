"""Puts times, numbers of things and answers into words."""

from typing import Any


def duration(seconds: float) -> str:
    """A time to read, such as ``31 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def counted(count: int, noun: str) -> str:
    """A number of things, such as ``1 row`` or ``3,000 rows``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}s"


def answer_in_words(answer: Any) -> str:
    """An answer to a row as a report shows it; of several labels their names, or none."""
    if isinstance(answer, list):
        return ", ".join(answer) or "none"
    return str(answer)
