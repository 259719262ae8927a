"""Folders that tests read from."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Rows of real benchmarks and the text of the paper, which are not part of the repository.
SHARED = ROOT.parent / "shared"
DATA = Path(os.environ.get("LORADA_DATA", SHARED / "data"))
