"""Reads scores of any trainer from the rows of a table: one for each method, seed and row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorada.decision.run_variances import Scores
from lorada.support.plain_yaml import read_yaml

PLACE_COLUMNS = ["method", "seed", "row"]  # where a score stands
COLUMNS = [*PLACE_COLUMNS, "score"]
# What a table may have in place of a number → that number; right and wrong are 1 and 0.
SPELLED_SCORES = {"": "nan", "true": "1", "false": "0"}


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a table."""

    scores: dict[str, Scores]  # method → seeds × rows; NaN where a run diverged
    seeds: dict[str, tuple[str, ...]]  # of each run, in the order of texts: 10 comes before 2
    groups: tuple[str, ...] | None  # of each row


def read_scores(rows: Iterable[Mapping[str, Any]], source: str) -> ScoreTable:
    """Read the scores of a table with the columns method, seed, row and score, and maybe group.

    Names of columns may be written in capitals. A score may be ``true`` or ``false``, which are 1
    and 0. One that is empty, ``nan`` or ``inf`` says that there is none. A run of which no row has
    a score has diverged; one with scores of some rows alone is refused.

    Args:
        rows: of the table, each column → value.
        source: the name of the table in errors, such as its file.

    Raises:
        ValueError: for a column that is missing or there twice, a score that is no number or there
            twice, a run with scores of some rows alone, and a row in two groups.
    """
    table = _text_table(rows, source)
    if "group" in table and not table["group"].any():  # a column without a single group
        table = table.drop(columns="group")
    texts = table["score"].str.strip().str.lower().replace(SPELLED_SCORES)
    numbers = pd.to_numeric(texts, errors="coerce")  # NaN for what is no number
    is_score_or_missing = numbers.notna() | (texts == "nan")
    _refuse_first_mistake(source, _mistakes(table, is_score_or_missing))
    numbers = numbers.where(np.isfinite(numbers))  # an infinite score is none: NaN

    # From a line for each score to a line for each run (method and seed), a column for each row.
    row_names = table["row"].unique()
    by_run = table.assign(score=numbers).pivot(
        index=["method", "seed"], columns="row", values="score"
    )
    by_run = by_run[row_names]  # a pivot sorts its columns, and groups are in the table's order
    _refuse_unscored_rows(source, by_run)
    groups = None
    if "group" in table:
        groups = tuple(table.groupby("row")["group"].first()[row_names])
    runs_of_methods = {name: by_run.loc[name] for name in table["method"].unique()}
    return ScoreTable(
        scores={name: runs.to_numpy() for name, runs in runs_of_methods.items()},
        seeds={name: tuple(runs.index) for name, runs in runs_of_methods.items()},
        groups=groups,
    )


def _text_table(rows: Iterable[Mapping[str, Any]], source: str) -> pd.DataFrame:
    """The rows as texts, under the names of columns in small letters; refuses missing columns."""
    text_rows = []
    for row in rows:
        texts = {str(name).strip().lower(): _as_text(value) for name, value in row.items()}
        if len(texts) < len(row):
            raise ValueError(f"{source} has two columns of one name: {', '.join(map(str, row))}")
        text_rows.append(texts)
    table = pd.DataFrame(text_rows).fillna("")
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        # One score of a whole run, such as the BLEU of a corpus, says nothing of other rows.
        raise ValueError(
            f"{source} has no column {', '.join(missing)}, but {', '.join(table) or 'none'}: a "
            f"table of scores has the columns {', '.join(COLUMNS)} (of each row, not of a whole "
            "run), and group where rows come in groups"
        )
    return table


def _as_text(value: object) -> str:
    """A value as the text that a CSV file would have; empty for none and NaN."""
    if value is None or value != value:  # a null, or NaN
        return ""
    return str(value).strip()


def _mistakes(table: pd.DataFrame, is_score_or_missing: pd.Series) -> dict[str, pd.Series]:
    """What may be wrong with a row of the table → of each row, whether it is.

    Mistakes are named so that they end the sentence ``FILE, row 3, …``. What comes first is said
    first: a row without a name is also there twice if there are two of them.
    """
    mistakes = {
        "needs a method, a seed and a row": (table[PLACE_COLUMNS] == "").any(axis=1),
        "has a score that is there already": table.duplicated(PLACE_COLUMNS),
        "has a score that is no number": ~is_score_or_missing,
    }
    if "group" in table:
        mistakes["has no group, and others have one"] = table["group"] == ""
        first_group = table.groupby("row")["group"].transform("first")
        mistakes["has another group than before"] = table["group"] != first_group
    return mistakes


def _refuse_first_mistake(source: str, mistakes: Mapping[str, pd.Series]) -> None:
    """Refuse a table with mistakes, by the first row that has the first kind of them."""
    for mistake, is_in_row in mistakes.items():
        if is_in_row.any():
            raise ValueError(f"{source}, row {int(np.argmax(is_in_row)) + 1}, {mistake}")


def _refuse_unscored_rows(source: str, by_run: pd.DataFrame) -> None:
    """Refuse a run that has scores of some rows and not of others."""
    row_names = by_run.columns
    for (method, seed), has_score in zip(by_run.index, np.isfinite(by_run.to_numpy()), strict=True):
        if has_score.all() or not has_score.any():  # finished, or diverged
            continue
        first, *others = row_names[~has_score]
        more = f" and of {len(others)} more" if others else ""
        raise ValueError(
            f"{source}: {method}, seed {seed}, has no score of row {first}{more}. Give every run a "
            "score of all rows, or leave these rows out of all"
        )


def baseline_of(name: str, runs: Scores) -> Scores:
    """The score of each row without training: the mean over the runs that have one."""
    mean: Scores = finished_runs("--baseline", name, runs).mean(axis=0)
    return mean


def finished_runs(option: str, name: str, runs: Scores) -> Scores:
    """The runs that have a score of each row, which an option names; refuses none."""
    finished = runs[np.isfinite(runs).all(axis=1)]
    if not len(finished):
        raise ValueError(f"{option} {name} has no score in the file")
    return finished


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """Read costs from a YAML or JSON file: method → parameters, seconds, bytes.

    Which kinds of cost there are, and that they are numbers, ``decide`` checks.

    Raises:
        ValueError: for a file that is not UTF-8 or YAML, or has no mapping of mappings.
    """
    try:
        costs = read_yaml(path.read_text(encoding="utf-8"), f"the costs in {path}")
    except UnicodeDecodeError as error:
        raise ValueError(f"the costs in {path} are not UTF-8: {error}") from error
    is_mapping = isinstance(costs, dict)
    if not is_mapping or not all(isinstance(amounts, dict) for amounts in costs.values()):
        raise ValueError(f"{path} needs the costs of each method: lora: {{parameters: 36864}}")
    return {str(name): amounts for name, amounts in costs.items()}
