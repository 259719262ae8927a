"""Helpers for errors that a user can act on: the value, the remedy, in one line."""

import difflib
from collections.abc import Iterable

MOST = 12  # names that an error lists


def unknown(kind: str, value: str, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` that names the nearest known names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    shown = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if names[MOST:] else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {shown}"
    return ValueError(f"unknown {kind} {value!r}; {hint}")
