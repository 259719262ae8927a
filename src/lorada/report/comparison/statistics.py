"""The statistics of ``lorada.compare``."""

from lorada.compare.letters import letters  # noqa: F401
from lorada.compare.statistics import *  # noqa: F403
