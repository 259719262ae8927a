"""Helpers for errors that a user can act on: the value, the remedy, in one line."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, value: str, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` that names the nearest known names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ValueError(f"unknown {kind} {value!r}; {hint}")
