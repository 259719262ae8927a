"""Experiments of several runs: the paper's tables, the search, the quickstart."""
