"""The sentences above a table: what was compared, on which rows, and on which machine."""

from collections.abc import Iterable, Sequence
from typing import Any

from lorada.paper.table_lines import MEAN, Columns, Results, TableLine
from lorada.paper.table_spec import PaperTable, Scale
from lorada.runs.result import RunResult
from lorada.support.metric_names import main_metric

PACKAGES = ("torch", "transformers", "peft")
UNKNOWN = "unknown"  # what a result does not say, such as one that another program has written


def page_notes(
    table: PaperTable,
    scale: Scale,
    results: Results,
    columns: Columns,
    averaged: Sequence[str],
    lines: Sequence[TableLine],
) -> list[str]:
    """All notes of a page, in their order.

    Args:
        table: the table.
        scale: the scale that its rows were run at.
        results: those of all its runs.
        columns: what its columns show.
        averaged: the columns that its mean is of.
        lines: its rows.
    """
    notes = [_models_note(results), _data_note(results), _sizes_note(results)]
    notes.append(_scores_note(results, columns))
    if averaged:
        notes.append(
            f"{MEAN}: of {', '.join(averaged)}, of seeds that have them all; where the paper "
            "prints a mean alone, that one."
        )
    notes.append(_unfinished_note(lines))
    notes += table.notes
    if scale == "local":
        notes += table.differs
    notes.append(_machines_note(results))
    return [note for note in notes if note]


def _models_note(results: Results) -> str:
    """The models and the seeds."""
    models = _listed_once(result.model for result in results)
    seeds = sorted({result.seed for result in results})
    if len(seeds) > 1:
        spread = "; ± is the standard deviation over seeds"
        return f"ours: {models}; seeds {_listed_once(seeds)}{spread}."
    return f"ours: {models}; seed {_listed_once(seeds)}."


def _data_note(results: Results) -> str:
    """What was learned from: protocols, numbers of rows and their source, where results say so."""
    protocols: list[str] = []
    sizes: list[str] = []
    train_on: list[str] = []
    sources: list[str] = []
    for result in results:
        recipe = result.recipe
        if recipe is not None and recipe.protocol:
            protocols.append(recipe.protocol)
        if recipe is not None and recipe.train_on:
            train_on.append(recipe.train_on)
        data = result.data
        if data is not None:
            sizes.append(f"{data.rows:,}")
        if data is not None and data.source:
            sources.append(data.source)
    texts = {
        "protocol": _listed_once(protocols),
        "rows to learn from": _listed_once(sizes),
        "train_on": _listed_once(train_on),
        "rows are from": _listed_once(sources),
    }
    phrases = [f"{title}: {text}" for title, text in texts.items() if text]
    if not phrases:
        return ""
    return "; ".join(phrases) + "."


def _sizes_note(results: Results) -> str:
    """How many rows of each task were scored."""
    sizes: dict[str, int] = {}
    for result in results:
        for task, metrics in result.metrics.items():
            sizes[task] = metrics.n
    return f"scored rows: {', '.join(f'{task} {size}' for task, size in sizes.items())}."


def _scores_note(results: Results, columns: Columns) -> str:
    """The metric that each column shows."""
    columns_of: dict[str, list[str]] = {}  # by metric
    for name, column in columns.items():
        scores_of_runs = []
        for result in results:
            metrics = result.metrics.get(column.task)
            if metrics is not None:
                scores_of_runs.append(metrics.scores)
        metric = column.metric
        if metric is None and scores_of_runs:
            metric = main_metric(scores_of_runs[0])
        # Some columns exist at one scale only, such as a length in tokens.
        if any(metric in scores for scores in scores_of_runs):
            columns_of.setdefault(str(metric), []).append(name)
    if not columns_of:
        return ""
    phrases = [f"{metric} of {', '.join(names)}" for metric, names in columns_of.items()]
    return f"scores: {'; '.join(phrases)}."


def _unfinished_note(lines: Sequence[TableLine]) -> str:
    """Which rows have fewer seeds than others."""
    fewest: dict[str, int] = {}  # label → seeds of the column that has fewest
    most = 0
    for line in lines:
        counts = [len(scores) for scores in line.scores.values()]
        if line.source == "ours" and counts:
            fewest[line.label] = min(counts)
            most = max(most, *counts)
    unfinished = [label for label, count in fewest.items() if count < most]
    if not unfinished:
        return ""
    return f"fewer seeds than {most} so far, at least in one column: {', '.join(unfinished)}."


def _machines_note(results: Results) -> str:
    """The hardware and versions, without repeats."""
    machines = []
    for result in results:
        machines.append(f"{_machine_of(result)}; {_packages_of(result)}")
    listed = _listed_once(machines, "; or ")
    return f"{listed}. Minutes are of training, all seeds and tasks together."


def _machine_of(result: RunResult) -> str:
    """The accelerator of a run, or the processor if it had none."""
    hardware = result.hardware
    if hardware is None:
        return "machine unknown"
    if hardware.get("accelerator"):
        return str(hardware["accelerator"])
    processor = hardware.get("cpu") or "processor unknown"
    cores, threads = hardware.get("cores", UNKNOWN), hardware.get("threads", UNKNOWN)
    return f"{processor}, {cores} cores, threads: {threads}"


def _packages_of(result: RunResult) -> str:
    """The versions of the packages that scores depend on most."""
    texts = [f"{package} {result.versions.get(package, UNKNOWN)}" for package in PACKAGES]
    return ", ".join(texts)


def _listed_once(values: Iterable[Any], separator: str = ", ") -> str:
    """Values as texts, each once and in their order."""
    return separator.join(dict.fromkeys(map(str, values)))
