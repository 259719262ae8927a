"""Reads scores of any trainer from a table: a line for each method, seed and row."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from lorada.compare.statistics import Scores

COLUMNS = ("method", "seed", "row", "score")


@dataclass(frozen=True)
class ScoreFile:
    """The scores of a file.

    Attributes:
        scores: method → seeds × rows, methods in the order of the file; NaN where a run diverged.
        seeds: method → the seed of each of its runs.
        rows: names of the rows, in the order of the columns of all scores.
        groups: of each row; None if the file has no groups.
    """

    scores: dict[str, Scores]
    seeds: dict[str, tuple[str, ...]]
    rows: tuple[str, ...]
    groups: tuple[str, ...] | None


def read_scores(path: Path) -> ScoreFile:
    """Read a CSV file with the columns method, seed, row and score, and maybe group.

    An empty score, ``nan`` or ``inf`` says that there is none: a run with no score has diverged.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a column or a score that is missing or wrong, with the line or the run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    runs: dict[tuple[str, str], dict[str, float]] = {}
    groups: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}: its first line is to name the columns "
                f"{', '.join(COLUMNS)}, and group where rows come in groups"
            )
        for line in table:
            where = f"{path}, line {table.line_num}"
            method, seed, row = (line[name] for name in COLUMNS[:3])
            if not (method and seed and row) or None in line:
                raise ValueError(f"{where} needs a value for each of {', '.join(COLUMNS)}")
            scored = runs.setdefault((method, seed), {})
            if row in scored:
                raise ValueError(f"{where}: {method}, seed {seed}, has row {row} twice")
            scored[row] = _number(line["score"], where)
            group = line.get("group") or row
            if groups.setdefault(row, group) != group:
                raise ValueError(f"{where}: row {row} is in the groups {groups[row]} and {group}")
    if not runs:
        raise ValueError(f"{path} has no scores")
    return _tables(path, runs, groups if "group" in (table.fieldnames or ()) else None)


def _number(text: str | None, where: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no score") from None


def _tables(
    path: Path, runs: Mapping[tuple[str, str], dict[str, float]], groups: dict[str, str] | None
) -> ScoreFile:
    """The runs as arrays; a run must have every row, if it has a score at all."""
    rows = tuple(dict.fromkeys(row for scored in runs.values() for row in scored))
    for (method, seed), scored in runs.items():
        lacking = [row for row in rows if not math.isfinite(scored.get(row, math.nan))]
        if 0 < len(lacking) < len(rows):
            more = f" and of {len(lacking) - 1} more" if lacking[1:] else ""
            raise ValueError(
                f"{path}: {method}, seed {seed}, has no score of row {lacking[0]}{more}. Give every "
                "run a score of all rows, or leave these rows out of all"
            )
    seeds: dict[str, tuple[str, ...]] = {}
    for method, seed in sorted(runs, key=lambda run: (len(run[1]), run[1])):
        seeds[method] = (*seeds.get(method, ()), seed)
    scores = {
        method: np.array([[runs[method, seed].get(row, math.nan) for row in rows]
                          for seed in seeds[method]])
        for method in dict.fromkeys(method for method, _ in runs)
    }  # fmt: skip
    return ScoreFile(scores, seeds, rows, tuple(groups[row] for row in rows) if groups else None)


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """Read costs from a YAML or JSON file: method → parameters, seconds, bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML or JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f"{path} needs the costs of each method: lora: {{parameters: 36864}}")
    return {str(name): costs for name, costs in found.items()}
