"""Puts times and numbers of things into words."""


def duration(seconds: float) -> str:
    """A time to read, such as ``31 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def counted(count: int, what: str) -> str:
    """A number of things, such as ``1 row`` or ``3,000 rows``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
