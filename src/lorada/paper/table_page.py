"""A table of the paper as a page: our scores beside the published ones, as Markdown.

Each number is a mean over seeds with its spread, from ``result.json`` files.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorada.methods.provenance import NOT_FROM_THE_PAPER
from lorada.paper.beside_scores import error_of_mean, score_in, standard_error
from lorada.paper.table_spec import PaperTable, Scale, TableRow
from lorada.support.metric_names import main_metric
from lorada.support.tables import NOTHING, markdown_table

TEXTS = 3  # columns before the numbers
MEAN = "mean"
AVERAGE = "avg"  # the name of the paper's own column of means

Results = Sequence[dict[str, Any]]
Columns = dict[str, tuple[str, str | None]]  # name → (task, metric), None for the first metric


@dataclass(frozen=True)
class TableLine:
    """One line of a page: a row as published, or as measured."""

    label: str
    source: str  # ``paper``, ``ours``, or ``rows`` for what follows from the scored rows alone
    percent: str  # trained parameters in percent of the base, or as published
    scores: dict[str, list[float]]  # column (or ``MEAN``) → one number per seed, or the published
    spread: dict[str, float] = field(default_factory=dict)  # column → published standard deviation
    minutes: float | None = None  # of training, summed over runs


@dataclass(frozen=True)
class Page:
    """A table with notes on what was compared."""

    title: str
    columns: list[str]  # names of scores, means included
    lines: list[TableLine]
    notes: list[str]  # sentences above the table
    digits: int = 1  # decimal places


@cache
def published(number: int) -> dict[str, Any]:
    """The published numbers of a table: ``columns`` and ``rows``."""
    path = Path(__file__).with_name("published.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))[number]
    return found


def has_models(number: int) -> bool:
    """Whether a published table has rows of several models."""
    return len({row.get("model") for row in published(number)["rows"]}) > 1


def published_line(number: int, key: str, averaged: Sequence[str] = ()) -> TableLine | None:
    """A published row by its key; None if the paper has no such row.

    Its mean is over the columns ``averaged``, or the printed one if the paper prints only a mean.
    """
    table = published(number)
    row = next((row for row in table["rows"] if row["key"] == key), None)
    if row is None:
        return None
    scores = {c: [s] for c, s in zip(table["columns"], row["scores"], strict=True) if s is not None}
    spread = dict(zip(table["columns"], row.get("std") or [], strict=False))
    spread = {c: s for c, s in spread.items() if s is not None}
    if set(scores) == {AVERAGE}:
        scores[MEAN] = scores[AVERAGE]
        spread |= {MEAN: spread[AVERAGE]} if AVERAGE in spread else {}
    elif averaged and all(name in scores for name in averaged):
        scores[MEAN] = [statistics.fmean(scores[name][0] for name in averaged)]
    label = row["label"]
    if has_models(number) and row["model"] != label:
        label = f"{row['model']}, {label}"
    share = f"{row['params']}%" if row["params"][-1].isdigit() else row["params"]
    return TableLine(label, "paper", share, scores, spread)


def measured_line(
    label: str, results: Sequence[dict[str, Any]], columns: Columns, averaged: Sequence[str] = ()
) -> TableLine:
    """The measured line of a row, from the results of all its seeds and tasks.

    Its mean is over the columns ``averaged``, seed by seed.
    """
    by_seed: dict[int, dict[str, float]] = {}
    for result in sorted(results, key=lambda r: int(r["seed"])):
        found = by_seed.setdefault(result["seed"], {})
        for name, (task, metric) in columns.items():
            metrics = result["metrics"].get(task, {})
            # Some columns exist at one scale only, such as a length in tokens.
            if metrics and (metric is None or metric in metrics):
                found[name] = float(metrics[metric or main_metric(metrics)])
    every = [(name, [f[name] for f in by_seed.values() if name in f]) for name in columns]
    scores = {name: values for name, values in every if values}
    whole = [f for f in by_seed.values() if averaged and all(name in f for name in averaged)]
    if whole:
        scores[MEAN] = [statistics.fmean(f[name] for name in averaged) for f in whole]
    shares = {f"{r['parameters']['percent']:.3f}%" for r in results}
    minutes = sum(r["wall_time_s"] for r in results) / 60 if results else None
    percent = " / ".join(sorted(shares)) or NOTHING
    if any(NOT_FROM_THE_PAPER in r.get("settings_from", "") for r in results):
        label = f"{label} (settings {NOT_FROM_THE_PAPER})"
    return TableLine(label, "ours", percent, scores, minutes=minutes)


def page_of(
    chosen: PaperTable,
    scale: Scale,
    kept: Iterable[tuple[TableRow, dict[str, Any]]],
    *,
    every: bool,
) -> Page:
    """The page of results and their rows; with ``every`` also the rows that only the paper has."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row, result in kept:
        by_row.setdefault(row.key, []).append(result)
    _check_rows(by_row)
    results = [result for each in by_row.values() for result in each]
    scored = {task for result in results for task in result["recipe"]["task"].split(",")}
    columns = chosen.columns_of([task for task in chosen.tasks if task in scored])
    averaged = [name for name in columns if chosen.mean is None or name in chosen.mean]
    ends = _ends(by_row)
    first = next(iter(ends.values()))
    lines = [
        _renamed(line, ends.get(key, first))
        for key in [*(_unrun(chosen) if every else []), *by_row]
        for line in _lines(chosen, key, by_row.get(key, []), columns, averaged)
    ]
    for end in dict.fromkeys(ends.values()):
        of_end = [result for key in by_row if ends[key] == end for result in by_row[key]]
        lines += [_renamed(line, end) for line in _lines_of_rows(of_end, columns, averaged)]
    plain = [*columns, *([MEAN] if averaged else [])]
    notes = [
        *_about(results, columns),
        *([f"{MEAN}: of {', '.join(averaged)}, of seeds that have them all; where the paper "
           "prints a mean alone, that one."] if averaged else []),
        *_unfinished(lines),
        *chosen.notes,
        *(chosen.differs if scale == "local" else []),
        *_machines(results),
    ]  # fmt: skip
    return Page(
        f"Table {chosen.table}: {chosen.title} ({scale} scale)",
        [name + end for end in dict.fromkeys(ends.values()) for name in plain],
        lines,
        notes,
        chosen.digits,
    )


def _unfinished(lines: Sequence[TableLine]) -> list[str]:
    """A note on rows with fewer seeds than others."""
    ours = [line for line in lines if line.source == "ours"]
    counts = {line.label: [len(v) for v in line.scores.values()] for line in ours}
    most = max((n for found in counts.values() for n in found), default=0)
    fewer = [label for label, found in counts.items() if found and min(found) < most]
    return [f"fewer seeds than {most} so far, at least in one column: {', '.join(fewer)}."
            ] if fewer else []  # fmt: skip


def _unrun(chosen: PaperTable) -> list[str]:
    """The keys of the rows that only the paper has, such as ChatGPT's."""
    run = {row.key for row in chosen.rows}
    return [row["key"] for row in published(chosen.table)["rows"] if row["key"] not in run]


def _lines(
    chosen: PaperTable, key: str, results: Results, columns: Columns, averaged: Sequence[str]
) -> Iterator[TableLine]:
    """A row as published, if it is, and as measured, if it was run."""
    printed = published_line(chosen.table, key, averaged)
    if printed is not None:
        yield printed
    if results:
        (row,) = (row for row in chosen.rows if row.key == key)
        label = key if has_models(chosen.table) else row.label  # the key names the paper's model
        yield measured_line(label, results, columns, averaged)


def _lines_of_rows(
    results: Results, columns: Columns, averaged: Sequence[str]
) -> Iterator[TableLine]:
    """What the commonest answer scores, and the standard error that the number of rows gives."""
    guesses: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, (task, metric) in columns.items():
        for result in results:
            metrics = result["metrics"].get(task, {})
            guess = score_in(result.get("guessing", {}).get(task, {}), metric)
            if guess is not None:
                guesses[name] = guess
            score = score_in(metrics, metric)
            if score is None:
                continue
            error = standard_error(metric or main_metric(metrics), score, metrics["n"])
            if error is not None:
                errors[name] = max(error, errors.get(name, 0.0))
    if averaged and all(name in guesses for name in averaged):
        guesses[MEAN] = statistics.fmean(guesses[name] for name in averaged)
    whole = error_of_mean(errors.get(name) for name in averaged)
    if whole is not None:
        errors[MEAN] = whole
    for label, values in (
        ("the commonest answer alone", guesses),
        ("standard error by the number of rows", errors),
    ):
        if values:
            scores = {name: [value] for name, value in values.items()}
            yield TableLine(label, "rows", NOTHING, scores)


def _ends(rows: Mapping[str, Results]) -> dict[str, str]:
    """What the names of a row's columns end with: its protocol, where rows differ in that."""
    of = {key: results[0]["recipe"].get("protocol") for key, results in rows.items()}
    apart = len({*of.values()}) > 1
    return {key: f" ({protocol})" if apart else "" for key, protocol in of.items()}


def _renamed(line: TableLine, end: str) -> TableLine:
    scores = {name + end: values for name, values in line.scores.items()}
    return replace(line, scores=scores, spread={n + end: value for n, value in line.spread.items()})


def _check_rows(rows: Mapping[str, Results]) -> None:
    """Refuse results that were scored on different rows of one task."""
    first: dict[tuple[str | None, str], tuple[str, str]] = {}
    for key, results in rows.items():
        for result in results:
            for task, metrics in result["metrics"].items():
                data, where = str(metrics.get("sha256")), f"{key}, seed {result['seed']}"
                asked = (result["recipe"].get("protocol"), task)
                known = first.setdefault(asked, (data, where))
                if known[0] != data:
                    raise ValueError(
                        f"{task} was scored on other rows in {where} than in {known[1]}: "
                        "run one of them again with --overwrite"
                    )


def _about(results: Results, columns: Columns) -> list[str]:
    """Notes on model, seeds and data of all runs, and on the metric that each column shows."""
    seeds = sorted({int(r["seed"]) for r in results})
    spread = "; ± is the standard deviation over seeds" if len(seeds) > 1 else ""
    what = {
        "protocol": _listed(p for r in results if (p := r["recipe"].get("protocol"))),
        "rows to learn from": _listed(f"{r['data']['rows']:,}" for r in results if r.get("data")),
        "train_on": _listed(on for r in results if (on := r["recipe"].get("train_on"))),
        "rows are from": _listed(s for r in results if (s := (r.get("data") or {}).get("source"))),
    }
    sizes = {task: m["n"] for r in results for task, m in r["metrics"].items()}
    metrics: dict[str, list[str]] = {}
    for name, (task, metric) in columns.items():
        every = [m for r in results if (m := r["metrics"].get(task))]
        if metric is None and every:
            metric = main_metric(every[0])
        if any(metric in m for m in every):
            metrics.setdefault(str(metric), []).append(name)
    shown = [f"{metric} of {', '.join(names)}" for metric, names in metrics.items()]
    notes = [
        f"ours: {_listed(r['model'] for r in results)}; "
        f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}{spread}",
        "; ".join(f"{name}: {text}" for name, text in what.items() if text),
        f"scored rows: {', '.join(f'{task} {n}' for task, n in sizes.items())}",
        f"scores: {'; '.join(shown)}" if shown else "",
    ]
    return [f"{note}." for note in notes if note]


def _machines(results: Results) -> list[str]:
    """A note on hardware and versions, without repeats."""
    found = []
    for result in results:
        machine, packages = result["hardware"], result["versions"]
        plain = "{cpu}, {cores} cores, threads: {threads}"
        name = machine["accelerator"] or plain.format(**machine)
        of = ", ".join(f"{p} {packages[p]}" for p in ("torch", "transformers", "peft"))
        found.append(f"{name}; {of}")
    return [f"{_listed(found, '; or ')}. Minutes are of training, all seeds and tasks together."]


def _listed(values: Iterable[Any], between: str = ", ") -> str:
    return between.join(dict.fromkeys(map(str, values)))


def _cell(page: Page, line: TableLine, name: str) -> str:
    values = line.scores.get(name)
    if not values:
        return NOTHING
    text = f"{statistics.fmean(values):.{page.digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else line.spread.get(name)
    return text if spread is None else f"{text} ± {spread:.{page.digits}f}"


def cells(page: Page, line: TableLine) -> list[str]:
    """The cells of a line."""
    cells = [line.label, line.source, line.percent]
    cells += [_cell(page, line, name) for name in page.columns]
    return [*cells, NOTHING if line.minutes is None else f"{line.minutes:.1f}"]


def header_of(page: Page) -> list[str]:
    """The names of all columns."""
    return ["method", "from", "trained", *page.columns, "minutes"]


def markdown(page: Page) -> str:
    """The page as a Markdown section."""
    lines = [f"## {page.title}", "", *(f"- {note}" for note in page.notes), ""]
    lines += markdown_table(header_of(page), [cells(page, line) for line in page.lines], TEXTS)
    return "\n".join([*lines, ""])
