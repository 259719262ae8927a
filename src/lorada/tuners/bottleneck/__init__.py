"""Bottleneck adapters: where they go in each architecture, and what they compute."""
