"""Bottleneck adapters: what they compute, and where they go in each architecture."""
