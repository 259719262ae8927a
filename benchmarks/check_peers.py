"""Measure lorada beside its peers again, in few turns, and fail if a figure became worse.

    make bench-check                                    # all rows, one turn of each
    python benchmarks/check_peers.py --rows train --turns 3

The rows are as large as those that are stored, since the time to start is a part of a process's.
Exits with 1 and a line for each figure of benchmarks/results/peers.json that is now higher by more
than the noise of both measurements; figures in seconds count only on the same machine.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import measure_peers
from library.measuring import Request, Results
from library.measuring import run_script as run_measurements
from library.worsened import worsened

FIGURES = ("time", "work", "memory", "start")


def stored_results(file: Path) -> Results:
    """The figures that are compared with.

    Raises:
        FileNotFoundError: if nothing was measured yet.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no figures at {file} to compare with: make bench-peers BENCH=")
    results: Results = json.loads(file.read_text(encoding="utf-8"))
    return results


def settings_of(results: Results, turns: int) -> measure_peers.Settings:
    """The settings of stored results, with other turns."""
    names = [setting.name for setting in fields(measure_peers.Settings)]
    old = measure_peers.Settings(**{name: results["settings"][name] for name in names})
    return replace(old, turns=turns)


def found_worse(file: Path, names: list[str], turns: int) -> list[str]:
    """Measure rows again and say what is worse; no names mean all rows that are stored.

    Raises:
        ValueError: for a row that was not stored.
    """
    before = stored_results(file)
    if missing := [name for name in names if name not in before["rows"]]:
        raise ValueError(f"--rows {missing[0]}: {file} has {', '.join(before['rows'])}")
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            settings_of(before, turns), Path(folder, file.name), Path(folder, "page.md"),
            names or list(before["rows"]),
        )  # fmt: skip
        now = run_measurements(measure_peers.run, request)
    same_machine = before["settings"]["hardware"] == now["settings"]["hardware"]
    return worsened(before["rows"], now["rows"], FIGURES, same_machine=same_machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", default="", help=f"of {', '.join(measure_peers.ROWS)}")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--results", type=Path, default=measure_peers.RESULTS, help="to compare")
    given: Any = parser.parse_args()
    names = [name for name in given.rows.split(",") if name]
    try:
        lines = found_worse(given.results, names, max(1, given.turns))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for line in lines:
        print(line)
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
