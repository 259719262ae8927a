"""Folders that tests read from."""

import os
from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
# Rows of real benchmarks, which are not part of the repository; tests that read them are skipped
# where LORADA_DATA does not name their folder. The text of the paper may lie beside it.
DATA = Path(os.environ.get("LORADA_DATA") or ROOT / "no data")
PAPER = DATA.parent / "paper.md"
