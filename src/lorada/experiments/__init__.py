"""Experiments of several runs: the paper's tables, comparisons, the quickstart."""
