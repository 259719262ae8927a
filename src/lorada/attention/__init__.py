"""What happens inside an attention call: the map or prefix that is added, and where."""

from lorada.attention.interface import install

__all__ = ["install"]
