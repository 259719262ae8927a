"""Results on the disk: under one setting, each row with the code that it was measured with."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lorada
from lorada.runs.folder.result import hardware, versions
from lorada.support.files import write_whole

ROUNDING = 0.11  # GiB that one machine's memory may seem to differ by


def load(settings: Any, file: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """What a file holds, if it was measured under these settings, with these packages, here.

    Args:
        settings: a dataclass.
        file: may be missing.
        overwrite: begin anew where it was not.

    Raises:
        ValueError: naming what differs.
    """
    about = {**vars(settings), "hardware": hardware(), "versions": versions()}
    if file.is_file():
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = list(differences(results.get("settings", {}), about))
        if not found:
            return results
        if not overwrite:
            raise ValueError(
                f"{file} was measured with {'; '.join(found)}: "
                "pass --output DIR, or --overwrite to begin anew"
            )
    return {"settings": about, "rows": {}, "growth": {}}


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Each setting that is another one, with both values."""
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now)
        elif name == "memory_gib" and before and now and abs(before - now) < ROUNDING:
            continue
        elif before != now:
            yield f"{name} {before}, not {now}"


def wanted(
    done: dict[str, Any], every: Iterable[str], names: list[str], *, overwrite: bool
) -> list[str]:
    """What is to be measured: what is named, else what is missing or, to overwrite, everything."""
    if names:
        return names
    if overwrite:
        done.clear()
    return [name for name in every if name not in done]


def keep(results: dict[str, Any], part: str, name: str, row: dict[str, Any], file: Path) -> None:
    """Add a row to a part of the results, and write them."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    results.setdefault(part, {})[name] = {**row, "code": code(), "measured": now}
    write_whole(file, json.dumps(results, indent=1) + "\n")


@functools.cache
def code() -> str:
    """A hash of the files of this package, as they were when it was first asked for."""
    root = Path(lorada.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def newest_code(results: dict[str, Any]) -> str | None:
    """The code that the newest row or curve was measured with; None where none says it."""
    rows = [*results["rows"].values(), *results.get("growth", {}).values()]
    dated = {row["measured"]: row["code"] for row in rows if "measured" in row}
    return dated[max(dated)] if dated else None


def is_older(row: dict[str, Any], newest: str | None) -> bool:
    """Whether a row was measured with other code than the newest one, or does not say."""
    return row.get("code") is None or row["code"] != newest
