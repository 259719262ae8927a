"""Reads what is there of a comparison's folder; whatever is missing or damaged becomes a note."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lorada.compare.statistics import Scores
from lorada.support.files import file_name
from lorada.support.metric_names import LOSS, as_score, main_metric, rows_metric

RowKey = tuple[str, int]  # the name of the rows and the row's number in their file, from 1
DIVERGED = ("the loss became ", "is not finite after step")  # in errors of a training
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class ScoredRun:
    """A finished run that is scored on the held-out rows.

    Attributes:
        folder: relative to the comparison's.
        seed: of the run.
        result: its ``result.json``.
        scores: by row, higher for the better one: a loss or an error is minus itself.
        losses: in nats, by row; NaN where none was measured.
        texts: by row, what was asked and the right answer, if they are stored.
    """

    folder: str
    seed: int
    result: dict[str, Any]
    scores: dict[RowKey, float]
    losses: dict[RowKey, float]
    texts: dict[RowKey, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredCandidate:
    """A method at one size, with its runs.

    Attributes:
        label: a unique name, such as ``lora`` or ``lora (0.2%)``.
        plan: its entry in ``plan.json``; ``chosen`` has its settings that a search chose, if any.
        runs: those that are scored, by seed.
        scores: seeds × rows, higher for the better one.
        losses: seeds × rows, in nats; NaN where none was measured.
        searches: each ``search.json``: one, or one of each seed; empty without a search.
        seconds: of a step, the fastest of the turns measured at the end; None if there are none.
        missing: why it has no run, or not one of every seed; empty if nothing is missing.
        diverged: seeds of the runs whose loss or weights became NaN or infinite.
    """

    label: str
    plan: dict[str, Any]
    runs: list[ScoredRun]
    scores: Scores
    losses: Scores
    searches: list[dict[str, Any]]
    seconds: float | None
    missing: str
    diverged: tuple[int, ...] = ()

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.plan["method"])

    @property
    def budgets(self) -> dict[str, bool]:
        """Each budget that leads to this size → whether the size is above it."""
        found: dict[str, bool] = self.plan.get("budgets") or {}
        return found

    @property
    def sizes(self) -> str:
        """The settings that give its size, as they are typed."""
        parts = self.plan.get("parts") or {}
        return " ".join(
            f"{part}.{k}={v}" for part, given in parts.items() for k, v in given.items()
        )


@dataclass(frozen=True)
class Results:
    """What is there of a comparison.

    Attributes:
        folder: of the comparison.
        asked: ``comparison.yaml``.
        plan: ``plan.json``.
        candidates: in the order of the plan.
        rows: the held-out rows, in the order of the columns of all scores.
        baselines: ``baselines.json``.
        notes: one line for each run or file that is missing, damaged or failed.
        metric: what methods are compared by, in ``result.json``'s words; empty for the main metric.
    """

    folder: Path
    asked: dict[str, Any]
    plan: dict[str, Any]
    candidates: list[ScoredCandidate]
    rows: list[RowKey]
    baselines: dict[str, Any]
    notes: list[str]
    metric: str = ""


def read_comparison(folder: Path, metric: str | None = None) -> Results:
    """Read a comparison, finished or not.

    Args:
        folder: of the comparison.
        metric: what methods are compared by; None for the comparison's own.

    Raises:
        ValueError: if the folder has no readable plan.
    """
    notes: list[str] = []
    if not (folder / "plan.json").is_file():
        raise ValueError(f"{folder} holds no comparison: it has no plan.json")
    plan = _mapping(folder, "plan.json", json.loads, notes)
    if notes or not isinstance(plan.get("candidates"), list):
        raise ValueError(f"{folder / 'plan.json'} is damaged: start again with --overwrite")
    asked = _mapping(folder, "comparison.yaml", yaml.safe_load, notes)
    failures = _mapping(folder, "failures.json", json.loads, notes, needed=False)
    baselines = _mapping(folder, "baselines.json", json.loads, notes)
    entries = [entry for entry in plan["candidates"] if isinstance(entry, dict)]
    seeds = _seeds(folder, asked)
    names = list(plan.get("held_out") or {})
    own = plan.get("metric")
    by = Path(metric or (str(own.get("name")) if isinstance(own, dict) else "")).name
    found = [_read_runs(folder, entry, seeds, failures, names, by) for entry in entries]
    rows = _common_rows([run for runs, _ in found for run in runs], names)
    candidates = []
    for entry, label, (runs, missing) in zip(entries, _labels(entries), found, strict=True):
        same = [run for run in runs if run.scores.keys() == set(rows)]
        missing += [f"{r.folder}: it was scored on other rows" for r in runs if r not in same]
        notes += missing
        notes += [f"{label}: {entry['reason']}"] if entry.get("reason") else []
        searches = _searches(folder, entry, seeds, notes)
        candidates.append(ScoredCandidate(
            label=label, plan=_settled(entry, searches), runs=same, missing="; ".join(missing),
            scores=_table(same, rows, "scores"), losses=_table(same, rows, "losses"),
            searches=searches, seconds=_seconds(folder, entry, notes),
            diverged=_diverged(entry, seeds, failures),
        ))  # fmt: skip
    notes += [f"{key}: {text}" for key, text in failures.items() if key.startswith("trials/")]
    return Results(folder, asked, plan, candidates, rows, baselines, notes, by)


def _diverged(entry: dict[str, Any], seeds: list[int], failures: dict[str, Any]) -> tuple[int, ...]:
    """The seeds of the runs that failed because a number was no longer finite."""
    said = {seed: str(failures.get(f"runs/{_place(entry)}/seed{seed}", "")) for seed in seeds}
    return tuple(seed for seed, text in said.items() if any(sign in text for sign in DIVERGED))


def _searches(
    folder: Path, entry: dict[str, Any], seeds: list[int], notes: list[str]
) -> list[dict[str, Any]]:
    """What the searches of a candidate's learning rate have found: one, or one of each seed."""
    place = f"trials/{_place(entry)}"
    names = [f"{place}/search.json", *(f"{place}/seed{seed}/search.json" for seed in seeds)]
    found = [_mapping(folder, name, json.loads, notes, needed=False) for name in names]
    return [search for search in found if isinstance(search.get("trials"), list)]


def _settled(entry: dict[str, Any], searches: list[dict[str, Any]]) -> dict[str, Any]:
    """An entry with the sizes of the setting that a search chose, of several the largest."""
    choices = entry.get("choices") or []
    taken = sorted({search["choice"] for search in searches if search.get("choice") is not None})
    found = [choices[number] for number in taken if number < len(choices)]
    if not found:
        return entry
    largest = max(found, key=lambda one: one["trainable"])
    sizes = {key: largest[key] for key in ("parts", "trainable", "percent", "mergeable")}
    return {**entry, **sizes, "chosen": [one["method"] for one in found]}


def _seconds(folder: Path, entry: dict[str, Any], notes: list[str]) -> float | None:
    """The time of a step that was measured at the end: of the fastest turn, in seconds."""
    turns = [
        _mapping(folder, str(path.relative_to(folder)), json.loads, notes).get("seconds_per_step")
        for path in sorted((folder / "times" / _place(entry)).glob("turn*.json"))
    ]
    return min((float(turn) for turn in turns if isinstance(turn, int | float)), default=None)


def _mapping(
    folder: Path, name: str, parse: Callable[[str], Any], notes: list[str], *, needed: bool = True
) -> dict[str, Any]:
    """The mapping in a file; if it is damaged, or needed and missing, an empty one and a note."""
    path = folder / name
    if not path.is_file():
        notes += [f"{name} is not there yet"] if needed else []
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (*BROKEN, yaml.YAMLError):
        pass
    notes.append(f"{name} is damaged and was left out")
    return {}


def _place(entry: dict[str, Any]) -> str:
    """The folder of a candidate, in ``trials`` and in ``runs``."""
    return f"{file_name(str(entry.get('method')))}/{entry.get('trainable')}"


def _seeds(folder: Path, asked: dict[str, Any]) -> list[int]:
    """The seeds that were asked for; if that cannot be read, those of the runs."""
    given = asked.get("seeds")
    if isinstance(given, list) and given and all(isinstance(seed, int) for seed in given):
        return given
    names = {path.name.removeprefix("seed") for path in folder.glob("runs/*/*/seed*")}
    return sorted(int(name) for name in names if name.isdecimal())


def _labels(entries: list[dict[str, Any]]) -> list[str]:
    """A unique name for each candidate: its method, with its budgets if it has several sizes."""
    count = Counter(entry.get("method") for entry in entries)
    labels = [
        f"{entry.get('method')} ({', '.join(entry.get('budgets') or {}) or 'default size'})"
        if count[entry.get("method")] > 1
        else str(entry.get("method"))
        for entry in entries
    ]
    return labels


def _read_runs(
    folder: Path,
    entry: dict[str, Any],
    seeds: list[int],
    failures: dict[str, Any],
    held_out: Collection[str],
    metric: str,
) -> tuple[list[ScoredRun], list[str]]:
    """The scored runs of a candidate, and a line for each seed that is missing."""
    runs, missing = [], []
    for seed in seeds if not entry.get("reason") else []:
        name = f"runs/{_place(entry)}/seed{seed}"
        if name in failures:
            missing.append(f"{name} failed: {failures[name]}")
        elif not (folder / name / "predictions.jsonl").is_file():
            missing.append(f"{name} is not finished")
        else:
            try:
                runs.append(_read_run(folder, name, seed, held_out, metric))
            except BROKEN as error:
                reason = str(error) if isinstance(error, ValueError) else type(error).__name__
                missing.append(f"{name} is damaged and was left out ({reason})")
    return runs, missing


def _read_run(
    folder: Path, name: str, seed: int, held_out: Collection[str], metric: str
) -> ScoredRun:
    """A run with its scores on the held-out rows; it may have been scored on others since."""
    result = json.loads((folder / name / "result.json").read_text(encoding="utf-8"))
    for metrics in result["metrics"].values():
        main_metric(metrics)
    if not all(isinstance(entry, dict) for entry in result.get("history") or []):
        raise ValueError("its history is no list of losses")
    run = ScoredRun(name, seed, result, {}, {})
    # Not splitlines(), which would also split at U+2028, and a JSON string may hold that.
    text = (folder / name / "predictions.jsonl").read_text(encoding="utf-8")
    for line in filter(None, text.split("\n")):
        one = json.loads(line)
        row = str(one["rows"]), int(one["row"])
        if row[0] not in held_out:
            continue
        by = rows_metric(metric or main_metric(result["metrics"][row[0]]))
        values = {LOSS: one["loss"], **(one.get("metrics") or {})}
        if by not in values:
            raise ValueError(f"row {row[1]} of {row[0]} has no {by}")
        if values[by] is None:
            if by == LOSS:
                continue  # its response lies beyond max_length, in every run
            raise ValueError(f"row {row[1]} of {row[0]} has no score")
        run.scores[row] = as_score(float(values[by]), by)
        run.losses[row] = math.nan if one.get("loss") is None else float(one["loss"])
        if "text" in one:
            run.texts[row] = str(one["text"]), str(one.get("right"))
    if not run.scores:
        raise ValueError("none of the held-out rows is scored")
    return run


def _common_rows(runs: list[ScoredRun], names: list[str]) -> list[RowKey]:
    """The rows that most runs were scored on, in the order of their names and numbers."""
    counted = Counter(frozenset(run.scores) for run in runs)
    rows = max(counted, key=lambda found: (counted[found], len(found)), default=frozenset())
    return sorted(rows, key=lambda row: (names.index(row[0]), row[1]))


def _table(runs: list[ScoredRun], rows: list[RowKey], kind: str) -> Scores:
    found = [[getattr(run, kind)[row] for row in rows] for run in runs]
    return np.array(found, dtype=float).reshape(len(runs), len(rows))
