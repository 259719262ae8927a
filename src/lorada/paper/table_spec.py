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
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from lorada.methods.lookup import method_named
from lorada.methods.method import PARTS
from lorada.runs.recipe import Recipe
from lorada.support.error_messages import unknown_name
from lorada.training.load_recipe import load_recipe

Scale = Literal["paper", "local"]
Settings = dict[str, Any]


class _Strict(BaseModel):
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
        return f"{'figure' if self.figure else 'table'}{self.table}"

    def shared(self, scale: Scale) -> SharedSettings:
        """The settings that all rows share at a scale."""
        return self.paper if scale == "paper" else self.local

    def tasks_at(self, scale: Scale, chosen: list[str] | None = None) -> list[str]:
        """The tasks at a scale, or those chosen among all of the table."""
        for name in chosen or []:
            if name not in self.tasks:
                raise unknown_name(f"task of {self.name}", name, self.tasks)
        return chosen or self.shared(scale).tasks or self.tasks

    def columns_of(self, tasks: list[str]) -> dict[str, tuple[str, str | None]]:
        """The columns of some tasks: name → (task, metric), None for the task's main metric."""
        found: dict[str, tuple[str, str | None]] = {}
        for task in tasks:
            own = {name: w for name, w in self.columns.items() if w.startswith(task)}
            for name, where in (own or {task: task}).items():
                scored, _, metric = where.partition(".")
                found[name] = (scored, metric or None)
        return found

    def rows_named(self, chosen: list[str] | None) -> list[TableRow]:
        """The rows with these keys or methods; all rows for None."""
        if chosen is None:
            return self.rows
        found = []
        for name in chosen:
            exact = [row for row in self.rows if row.key == name]
            rows = exact or [row for row in self.rows if row.method == name]
            if not rows:
                raise unknown_name(f"row of {self.name}", name, [row.key for row in self.rows])
            found += [row for row in rows if row not in found]
        return found

    def rows_at(self, scale: Scale, chosen: list[str] | None) -> list[TableRow]:
        """The rows of ``rows_named`` that can be run at a scale."""
        rows = self.rows_named(chosen)
        found = [row for row in rows if row.only in (None, scale)]
        for row in rows:
            if row not in found and (row.key in (chosen or []) or not found):
                raise ValueError(f"row {row.key} of {self.name} is for --scale {row.only} alone")
        return found


def tables() -> dict[str, Path]:
    """The YAML files of tables and figures, by name (``table5``, ``figure4``)."""
    folder = Path(str(files("lorada"))) / "recipes" / "tables"
    return {path.stem: path for path in folder.glob("*.yaml")}


@cache
def load_table(name: str) -> PaperTable:
    """A table or figure by its name, such as ``table5``."""
    known = tables()
    if name not in known:
        numbers = [int(n.removeprefix("table")) for n in known if n.startswith("table")]
        listed = ", ".join(map(str, sorted([2, 3, *numbers])))
        raise ValueError(f"no {name} of results in the paper: there are tables {listed}")
    return PaperTable(**yaml.safe_load(known[name].read_text(encoding="utf-8")))


# What makes a run a row of its table: no override may change it.
ROWS_OWN = ("method", "model", "task", "output", "data", "eval_data", "data_dir", "training.seed")


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
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in (*ROWS_OWN, "seed"):
            raise ValueError(
                f"{override}: {key} is what a row of {table.name} is, or has an option of its own: "
                "leave it out"
            )
    shared = table.shared(scale)
    settings = deepcopy(shared.settings)
    for task in tasks if len(tasks) == 1 else []:
        merge(settings, shared.by_task.get(task, {}))
    for part in PARTS.keys() - set(method_named(row.method).part_names):
        settings.pop(part, None)
    own = dict(row.paper if scale == "paper" else row.local)
    by_task = own.pop("by_task", {})
    merge(settings, own)
    for task in tasks if len(tasks) == 1 else []:
        merge(settings, by_task.get(task, {}))
    model = (row.model if scale == "paper" else None) or settings.get("model", shared.model)
    merge(settings, {"method": row.method, "model": model, "task": ",".join(tasks)})
    merge(settings, {"output": str(output), "training": {"seed": seed}})
    return load_recipe(None, list(overrides), settings)


def merge(into: Settings, other: Settings) -> None:
    """Update nested settings in place with others."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = deepcopy(value)
