"""Rows from a file or a benchmark: read, checked, turned into token ids, and scored.

Four folders, each of which takes what the one before it returns and imports nothing of those behind
it:

    files (bytes → dicts) → forms (dicts → a form) → rows (which are learned, which scored)
                                                       → scoring (by which metrics)

``tokenize`` makes token ids of rows, and ``tasks`` lists the benchmarks with their protocols.
"""
