"""Measures rows one after another and saves each, with its date, in a JSON file."""

import argparse
import gc
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from library.agreement import DisagreementError

from lorada.runs.machine import hardware, versions
from lorada.support.files import write_atomic

# Of the packages, those whose code takes the time that is measured. The others only start it.
DECIDING = ("python", "torch", "transformers", "peft")
MEMORY_ROUNDING = 0.11  # GiB by which the memory of one machine may seem to differ
Results = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        settings: a dataclass of what decides the figures, ``threads`` among it.
        file: holds the results.
        page: shows them.
        names: the rows; empty for those that are missing.
        overwrite: whether results of other settings are dropped.
    """

    settings: Any
    file: Path
    page: Path
    names: list[str] = field(default_factory=list)
    overwrite: bool = False


def read_request(
    description: str | None, known: Iterable[str], kind: type, file: Path, page: Path
) -> Request:
    """Read the command line of a script; a wrong one ends it with one line.

    Args:
        description: docstring of the script, whose first line ``--help`` shows.
        known: names of all rows.
        kind: dataclass of the settings; each field is an option.
        file: of the results, where no other folder is given.
        page: of the results, likewise.
    """
    known = list(known)
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--rows", default="", help=f"what to measure: {', '.join(known)}")
    parser.add_argument("--output", type=Path, help="folder for the results and the page")
    parser.add_argument(
        "--overwrite", action="store_true", help="start again instead of measuring what is missing"
    )
    for setting in fields(kind):
        default: Any = setting.default
        parser.add_argument(f"--{setting.name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    names = [name for name in given["rows"].split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--rows {unknown[0]}: no such row; there are {', '.join(known)}")
    settings = {setting.name: given[setting.name] for setting in fields(kind)}
    for name, value in settings.items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    if folder := given["output"]:
        file, page = folder / file.name, folder / page.name
    return Request(kind(**settings), file, page, names, given["overwrite"])


def run_script(run: Callable[[Request], Results], request: Request) -> Results:
    """Run a script's measurements without warnings; an error ends it with one line."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        return run(request)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def measure_rows(
    request: Request,
    known: Iterable[str],
    measure: Callable[[str], dict[str, Any]],
    show: Callable[[str, Results], None],
    section: str = "rows",
) -> Results:
    """Measure the rows that are asked for, or those that are missing, and save each as it comes.

    Args:
        request: what to measure.
        known: names of all rows.
        measure: measures a row.
        show: called with the name of a new row and all results, to write the page.
        section: where the rows stand in the file.

    Raises:
        ValueError: if the file has results of other settings.
        DisagreementError: if a row does not compute what it should.
    """
    torch.set_num_threads(request.settings.threads)
    results = load_results(request.settings, request.file, overwrite=request.overwrite)
    done = results.setdefault(section, {})
    if request.overwrite and not request.names:
        done.clear()
    names = request.names or [name for name in known if name not in done]
    for number, name in enumerate(names, 1):
        started = time.monotonic()
        try:
            row = measure(name)
        except DisagreementError as error:
            raise DisagreementError(f"{name} was not measured: {error}") from error
        gc.collect()
        done[name] = {**row, "measured": now()}
        write_atomic(request.file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        show(name, results)
        seconds = time.monotonic() - started
        print(f"[{number}/{len(names)}] {name}: {seconds:.0f} s", file=sys.stderr)
    return results


def load_results(settings: Any, file: Path, *, overwrite: bool = False) -> Results:
    """Read results that were measured with these settings and packages on this machine.

    Args:
        settings: a dataclass.
        file: may be missing.
        overwrite: start without rows where the file is of other settings.

    Raises:
        ValueError: naming what differs.
    """
    current = {**vars(settings), "hardware": hardware(), "versions": deciding_versions()}
    if file.is_file():
        results: Results = json.loads(file.read_text(encoding="utf-8"))
        differing = list(differences(results.get("settings", {}), current))
        if not differing:
            return results
        if not overwrite:
            raise ValueError(
                f"{file} was measured with {'; '.join(differing)}: "
                "pass --output DIR, or --overwrite to start again"
            )
    return {"settings": current, "rows": {}}


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Name each setting that differs, with both values."""
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now)
        elif name == "memory_gib" and before and now and abs(before - now) < MEMORY_ROUNDING:
            continue
        elif before != now:
            yield f"{name} {before}, not {now}"


def deciding_versions() -> dict[str, str]:
    """The versions of the packages that decide a figure."""
    installed = versions()
    return {name: installed[name] for name in DECIDING}


def now() -> str:
    """The time at which a row is saved, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def date_of(row: dict[str, Any]) -> str:
    """The day on which a row was measured, as ``2026-12-03``."""
    return datetime.fromisoformat(row["measured"]).date().isoformat()
