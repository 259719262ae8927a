"""The statistics of ``lorada.compare``."""

from lorada.compare.letters import letters as letters
from lorada.compare.statistics import *  # noqa: F403
