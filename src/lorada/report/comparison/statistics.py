"""The statistics of ``lorada.compare.statistics``."""

from lorada.compare.statistics import *  # noqa: F403
