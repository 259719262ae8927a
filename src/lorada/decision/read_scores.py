"""Reads scores of any trainer from a table: a line for each method, seed and row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lorada.data.files.read_rows import read_rows
from lorada.decision.run_variances import Scores
from lorada.runs.recipe import read_yaml

COLUMNS = ["method", "seed", "row", "score"]


@dataclass(frozen=True)
class ScoreFile:
    """The scores of a file."""

    scores: dict[str, Scores]  # method → seeds × rows; NaN where a run diverged
    seeds: dict[str, tuple[str, ...]]  # of each run
    groups: tuple[str, ...] | None  # of each row


def read_scores(path: Path) -> ScoreFile:
    """Read a table with the columns method, seed, row and score, and maybe group.

    It is a file such as a training takes: CSV with any delimiter, JSON, JSON Lines or Parquet. A
    score that is empty, ``nan`` or ``inf`` says that there is none: a run with no score diverged.
    Names of columns may be written in capitals.
    """
    table = _table(path)
    known = {"": "nan", "true": "1", "false": "0"}  # right and wrong
    score = table["score"].str.strip().str.lower().replace(known)
    scores = pd.to_numeric(score, errors="coerce")
    wrong = {
        "needs a method, a seed and a row": (table[COLUMNS[:3]] == "").any(axis=1),
        "has a score that is there already": table.duplicated(COLUMNS[:3]),
        "has a score that is no number": scores.isna() & (score != "nan"),
    }
    if "group" in table and not table["group"].any():
        table = table.drop(columns="group")
    if "group" in table:
        wrong["has no group, and others have one"] = table["group"] == ""
        first = table.groupby("row")["group"].transform("first")
        wrong["has another group than before"] = table["group"] != first
    for what, lines in wrong.items():
        if lines.any():
            raise ValueError(f"{path}, row {int(np.argmax(lines)) + 1}, {what}")
    rows = table["row"].unique()
    runs = table.assign(score=scores).pivot(index=["method", "seed"], columns="row", values="score")
    runs = runs[rows]
    for run, scored in zip(runs.index, np.isfinite(runs.to_numpy()), strict=True):
        if 0 < scored.sum() < len(rows):
            first, rest = rows[~scored][0], len(rows) - scored.sum() - 1
            raise ValueError(
                f"{path}: {run[0]}, seed {run[1]}, has no score of row {first}"
                f"{f' and of {rest} more' if rest else ''}. Give every run a score of all rows, or "
                "leave these rows out of all"
            )
    methods = {name: runs.loc[name] for name in table["method"].unique()}
    groups = tuple(table.groupby("row")["group"].first()[rows]) if "group" in table else None
    return ScoreFile(
        {name: one.to_numpy() for name, one in methods.items()},
        {name: tuple(one.index) for name, one in methods.items()},
        groups,
    )


def _table(path: Path) -> pd.DataFrame:
    """The file's rows as texts, under the names of columns that are known."""
    rows = []
    for row in read_rows(path):
        texts = {str(name).strip().lower(): _text(value) for name, value in row.items()}
        if len(texts) < len(row):
            raise ValueError(f"{path} has two columns of one name: {', '.join(map(str, row))}")
        rows.append(texts)
    table = pd.DataFrame(rows).fillna("")
    missing = [name for name in COLUMNS if name not in table]
    if not missing:
        return table
    # One score of a whole run, such as the BLEU of a corpus, says nothing of other rows.
    raise ValueError(
        f"{path} has no column {', '.join(missing)}, but {', '.join(table) or 'none'}: a table of "
        f"scores has the columns {', '.join(COLUMNS)} (of each row, not of a whole run), and group "
        "where rows come in groups"
    )


def _text(value: object) -> str:
    """A value as a table has it."""
    if value is None or value != value:  # a null, or NaN
        return ""
    return str(value).strip()


def baseline_of(name: str, runs: Scores) -> Scores:
    """The score of each row without training: the mean over the runs that have one."""
    finished = runs[np.isfinite(runs).all(axis=1)]
    if not len(finished):
        raise ValueError(f"--baseline {name} has no score in the file")
    mean: Scores = finished.mean(axis=0)
    return mean


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """Read costs from a YAML or JSON file: method → parameters, seconds, bytes."""
    try:
        found = read_yaml(path.read_text(encoding="utf-8"), f"the costs in {path}")
    except UnicodeDecodeError as error:
        raise ValueError(f"the costs in {path} are not UTF-8: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f"{path} needs the costs of each method: lora: {{parameters: 36864}}")
    return {str(name): costs for name, costs in found.items()}
