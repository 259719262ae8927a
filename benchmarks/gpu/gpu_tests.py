"""Part 2: the tests that are marked ``gpu``."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.machine import TESTS, Machine

TITLE = "The tests that need a GPU"
ABOUT = "`pytest -m gpu`: exactness on sdpa and flash attention, resuming, nf4, two processes."
HEADER = ("tests", "passed", "failed", "skipped", "not passed")
SECONDS = 900
ALONE = True
FEW = "flash and llama-chunks-map"  # in the tiny form


def cases(machine: Machine) -> list[str]:
    """All tests at once."""
    return ["pytest -m gpu"]


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """How many tests passed, and why others did not."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
        few = ["-k", FEW, str(TESTS / "test_on_gpu.py")] if machine.tiny else [str(TESTS)]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *few],
            cwd=TESTS.parent,
            env={**os.environ, "LORADA_TEST_DEVICE": machine.device},
            stdout=sys.stderr,
            check=False,
        )
        if not report.is_file():
            raise ValueError(f"pytest ended with {done.returncode} and no report")
        return read_report(report)


def read_report(report: Path) -> dict[str, Any]:
    """Counts of pytest's report, and of each reason for which a test did not pass."""
    counts, reasons = Counter[str](), Counter[str]()
    for test in ElementTree.parse(report).iter("testcase"):
        outcomes = [child for child in test if child.tag in ("failure", "error", "skipped")]
        if not outcomes:
            counts["passed"] += 1
            continue
        kind = "skipped" if outcomes[0].tag == "skipped" else "failed"
        counts[kind] += 1
        text = (outcomes[0].get("message") or "").strip().split("\n")[0][:120]
        reasons[text if kind == "skipped" else f"{test.get('name')}: {text}"] += 1
    numbers = {name: counts[name] for name in ("passed", "failed", "skipped")}
    return {**numbers, "reasons": dict(reasons)}


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line."""
    return [
        (
            name,
            *(str(row[kind]) for kind in ("passed", "failed", "skipped")),
            "; ".join(f"{text} ({n})" for text, n in row["reasons"].items()) or "–",
        )
        for name, row in rows.items()
    ]
