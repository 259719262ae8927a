"""Attention calls with an adapter: how a map or a prefix is added, and where."""

from lorada.attention.interface import install

__all__ = ["install"]
