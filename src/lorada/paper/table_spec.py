"""The paper's tables as data: ``recipes/tables/tableN.yaml``, and the recipes of their rows.

A row of a table is a method with its settings at two scales: ``paper`` (the real models) and
``local`` (small models, samples of the data, and sizes that come nearest to the printed share of
trained parameters).
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field

from lorada.methods.lookup import method_named
from lorada.methods.method import PARTS
from lorada.runs.recipe import Recipe
from lorada.support.error_messages import unknown_name
from lorada.training.load_recipe import load_recipe

Scale = Literal["paper", "local"]
Settings = dict[str, Any]


class ScoreColumn(NamedTuple):
    """What a column of a table shows."""

    task: str
    metric: str | None  # None for the task's main metric


class _Strict(BaseModel):
    """A part of a table's file, in which a mistyped name is an error."""

    model_config = ConfigDict(extra="forbid")


class SharedSettings(_Strict):
    """Settings that all rows of a table share at one scale."""

    model: str | None = Field(None, description="model of rows that name none")
    tasks: list[str] | None = Field(None, description="tasks at this scale; None for all")
    settings: Settings = Field({}, description="fields of a recipe")
    by_task: dict[str, Settings] = Field({}, description="exceptions by task")


class TableRow(_Strict):
    """One row of a table."""

    key: str = Field(description="its key in published.yaml")
    label: str = Field(description="as the paper prints it")
    method: str = Field(description="a name of METHODS")
    model: str | None = Field(None, description="at scale paper, where rows differ")
    share: float | None = Field(None, description="trained parameters as printed, percent")
    only: Scale | None = Field(None, description="the only scale it runs at; None for both")
    paper: Settings = Field({}, description="its own settings at scale paper; also by_task")
    local: Settings = Field({}, description="its own settings at scale local")


class PaperTable(_Strict):
    """A numbered table of results, or the runs that a figure is made of."""

    table: int
    figure: bool = Field(False, description="whether it is a figure's number")
    title: str
    tasks: list[str]
    train: Literal["each", "together"] = Field(description="one run for each task, or for all")
    seeds: list[int] = [1, 2, 3]
    notes: list[str] = Field([], description="what its numbers mean, at both scales")
    differs: list[str] = Field([], description="how a local run differs from the paper")
    columns: dict[str, str] = Field(
        {}, description="column → task.metric, where it is not a task with its main metric"
    )
    mean: list[str] | None = Field(None, description="columns to average; None for all")
    digits: int = Field(1, description="decimal places")
    paper: SharedSettings
    local: SharedSettings
    rows: list[TableRow]

    @property
    def name(self) -> str:
        """The name of its folder of results."""
        kind = "figure" if self.figure else "table"
        return f"{kind}{self.table}"

    def shared(self, scale: Scale) -> SharedSettings:
        """The settings that all rows share at a scale."""
        if scale == "paper":
            return self.paper
        return self.local

    def tasks_at(self, scale: Scale, names: list[str] | None = None) -> list[str]:
        """The tasks at a scale, or the named ones among all of the table.

        Raises:
            ValueError: for a task that the table does not have.
        """
        for name in names or []:
            if name not in self.tasks:
                raise unknown_name(f"task of {self.name}", name, self.tasks)
        return names or self.shared(scale).tasks or self.tasks

    def columns_of(self, tasks: list[str]) -> dict[str, ScoreColumn]:
        """The columns of some tasks, by name."""
        columns: dict[str, ScoreColumn] = {}
        for task in tasks:
            sources = {}  # column → task.metric
            for name, source in self.columns.items():
                if source.startswith(task):
                    sources[name] = source
            # A task that the table's file does not mention has one column, of its main metric.
            for name, source in (sources or {task: task}).items():
                scored_task, _, metric = source.partition(".")
                columns[name] = ScoreColumn(scored_task, metric or None)
        return columns

    def rows_named(self, names: list[str] | None) -> list[TableRow]:
        """The rows with these keys or methods; all rows for None.

        Raises:
            ValueError: for a name that is neither a row's nor a method's.
        """
        if names is None:
            return self.rows
        rows: list[TableRow] = []
        for name in names:
            # A key may be a method's name as well: then it means that one row.
            matches = [row for row in self.rows if row.key == name]
            if not matches:
                matches = [row for row in self.rows if row.method == name]
            if not matches:
                keys = [row.key for row in self.rows]
                raise unknown_name(f"row of {self.name}", name, keys)
            rows += [row for row in matches if row not in rows]
        return rows

    def rows_at(self, scale: Scale, names: list[str] | None) -> list[TableRow]:
        """The rows of ``rows_named`` that can be run at a scale.

        Raises:
            ValueError: if a row that was named by its key cannot, or none of them can.
        """
        rows = self.rows_named(names)
        runnable = [row for row in rows if row.only in (None, scale)]
        for row in rows:
            if row in runnable:
                continue
            named_by_key = names is not None and row.key in names
            if named_by_key or not runnable:
                raise ValueError(f"row {row.key} of {self.name} is for --scale {row.only} alone")
        return runnable


def tables() -> dict[str, Path]:
    """The YAML files of tables and figures, by name (``table5``, ``figure4``)."""
    folder = Path(str(files("lorada"))) / "recipes" / "tables"
    return {path.stem: path for path in folder.glob("*.yaml")}


@cache
def load_table(name: str) -> PaperTable:
    """A table or figure by its name, such as ``table5``.

    Raises:
        ValueError: if the paper has no such table, or it has no results.
    """
    paths = tables()
    if name not in paths:
        numbers = [2, 3]  # those of costs, which have no file
        for stem in paths:
            if stem.startswith("table"):
                numbers.append(int(stem.removeprefix("table")))
        listed = ", ".join(str(number) for number in sorted(numbers))
        raise ValueError(f"no {name} of results in the paper: there are tables {listed}")
    text = paths[name].read_text(encoding="utf-8")
    return PaperTable(**yaml.safe_load(text))


# What makes a run a row of its table: no override may change it.
FIXED_BY_ROW = (
    "method",
    "model",
    "task",
    "output",
    "data",
    "eval_data",
    "data_dir",
    "training.seed",
)


def row_recipe(
    table: PaperTable,
    row: TableRow,
    scale: Scale,
    tasks: list[str],
    seed: int,
    output: Path,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of one run of a row, which trains on ``tasks`` in the folder ``output``.

    The table's settings for parts that the method does not have are dropped. ``overrides`` are
    ``key=value`` settings in place of the row's.
    """
    _refuse_fixed_by_row(table, overrides)
    shared = table.shared(scale)
    row_settings = dict(row.paper if scale == "paper" else row.local)
    row_by_task = row_settings.pop("by_task", {})
    # Exceptions by task are of runs that learn one task.
    only_task = tasks[0] if len(tasks) == 1 else None

    # From the general to the particular, so that the later settings win.
    settings = deepcopy(shared.settings)
    if only_task is not None:
        merge(settings, shared.by_task.get(only_task, {}))
    for part in PARTS.keys() - set(method_named(row.method).part_names):
        settings.pop(part, None)
    merge(settings, row_settings)
    if only_task is not None:
        merge(settings, row_by_task.get(only_task, {}))

    # A row may name a model of its own for the paper's scale; else its settings may name one, or
    # that of the table counts.
    model = settings.get("model", shared.model)
    if scale == "paper" and row.model:
        model = row.model
    merge(settings, {"method": row.method, "model": model, "task": ",".join(tasks)})
    merge(settings, {"output": str(output), "training": {"seed": seed}})
    return load_recipe(source=None, overrides=list(overrides), options=settings)


def _refuse_fixed_by_row(table: PaperTable, overrides: Sequence[str]) -> None:
    """Refuse an override of what makes a run a row of its table."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in (*FIXED_BY_ROW, "seed"):
            raise ValueError(
                f"{override}: {key} is what a row of {table.name} is, or has an option of its own: "
                "leave it out"
            )


def merge(into: Settings, other: Settings) -> None:
    """Update nested settings in place with others."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = deepcopy(value)
