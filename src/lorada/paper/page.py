"""Builds the page of one of the paper's tables: lines, columns, and notes on what was compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorada.paper.render import (
    AVERAGE,
    MEAN,
    Columns,
    Page,
    TableLine,
    has_models,
    measured_line,
    published,
    published_line,
)
from lorada.support.metric_names import main_metric

Results = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class RowResults:
    """A row of a table by its key in ``published.yaml``, and the results of its runs so far."""

    key: str
    label: str
    results: Results

    @property
    def protocol(self) -> str | None:
        """The protocol its answers were scored by; None if its tasks have only one."""
        return next((r["recipe"].get("protocol") for r in self.results), None)


def paper_page(
    number: int,
    title: str,
    rows: Sequence[RowResults],
    columns: Columns,
    *,
    mean: list[str] | None,
    digits: int,
    notes: Sequence[str] = (),
    unrun: Sequence[str] = (),
) -> Page:
    """Build the page of a table from its rows and the published scores.

    Args:
        number: of the table.
        title: of the page.
        rows: at least one of them with a result.
        columns: of all rows; if rows differ in protocol, each protocol gets its own columns.
        mean: the columns to average; None for all.
        digits: decimal places.
        notes: the table's own notes.
        unrun: keys of published rows that cannot be run, such as ChatGPT's.

    Raises:
        ValueError: if two runs were scored on different rows of one task.
    """
    _check_rows(rows)
    averaged = [name for name in columns if mean is None or name in mean]
    plain = [*columns, *([MEAN] if averaged else [])]
    apart = len({row.protocol for row in rows}) > 1

    def names(row: RowResults) -> dict[str, str]:
        return {name: f"{name} ({row.protocol})" if apart else name for name in plain}

    lines = []
    for key in unrun:
        printed = published_line(number, key, averaged)
        lines += [_renamed(printed, names(rows[0]))] if printed else []
    for row in rows:
        printed = published_line(number, row.key, averaged)
        lines += [_renamed(printed, names(row))] if printed else []
        label = row.key if has_models(number) else row.label  # the key names the paper's model
        lines.append(_renamed(measured_line(label, row.results, columns, averaged), names(row)))
    shown = dict.fromkeys(name for row in rows for name in names(row).values())
    results = [result for row in rows for result in row.results]
    every_note = [
        *_about(results),
        *_scores(results, columns),
        *_of_means(number, averaged),
        *_unfinished(lines),
        *notes,
        *_unparsable(rows),
        *_machines(results),
    ]
    return Page(title, list(shown), lines, every_note, digits)


def _renamed(line: TableLine, names: dict[str, str]) -> TableLine:
    scores = {names.get(name, name): values for name, values in line.scores.items()}
    spread = {names.get(name, name): value for name, value in line.spread.items()}
    return replace(line, scores=scores, spread=spread)


def _check_rows(rows: Sequence[RowResults]) -> None:
    """Refuse results that were scored on different rows of one task."""
    first: dict[tuple[str | None, str], tuple[str, str]] = {}
    for row in rows:
        for result in row.results:
            for task, metrics in result["metrics"].items():
                data = str(metrics.get("sha256"))
                where = f"{row.key}, seed {result['seed']}"
                known = first.setdefault((row.protocol, task), (data, where))
                if known[0] != data:
                    raise ValueError(
                        f"{task} was scored on other rows in {where} than in {known[1]}: "
                        "run one of them again with --overwrite"
                    )


def _about(results: Results) -> list[str]:
    """Notes on model, seeds, protocol and data of all runs."""
    seeds = sorted({int(r["seed"]) for r in results})
    spread = "; ± is the standard deviation over seeds" if len(seeds) > 1 else ""
    notes = [
        f"ours: {_listed(r['model'] for r in results)}; "
        f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}{spread}."
    ]
    protocols = _listed(p for r in results if (p := r["recipe"].get("protocol")))
    trained = _listed(f"{r['data']['rows']:,}" for r in results if r.get("data"))
    sets = _listed(on for r in results if (on := r["recipe"].get("train_on")))
    sources = _listed(s for r in results if (s := (r.get("data") or {}).get("source")))
    parts = [
        f"protocol: {protocols}" if protocols else "",
        f"rows to learn from: {trained}" if trained else "",
        f"train_on: {sets}" if sets else "",
        f"rows are from {sources}" if sources else "",
    ]
    notes.append("; ".join(filter(None, parts)) + ".")
    sizes = {task: m["n"] for r in results for task, m in r["metrics"].items()}
    notes.append(f"scored rows: {', '.join(f'{task} {n}' for task, n in sizes.items())}.")
    return [note for note in notes if note != "."]


def _scores(results: Results, columns: Columns) -> list[str]:
    """A note on which metric each column shows; the paper calls all of GLUE's accuracy."""
    found: dict[str, list[str]] = {}
    for name, (task, metric) in columns.items():
        scored: dict[str, Any] = next(
            (m for r in results if (m := r["metrics"].get(task)) and (not metric or metric in m)),
            {},
        )
        if scored:
            found.setdefault(metric or main_metric(scored), []).append(name)
    shown = [f"{metric} of {', '.join(names)}" for metric, names in found.items()]
    return [f"scores: {'; '.join(shown)}."] if shown else []


def _of_means(number: int, averaged: Sequence[str]) -> list[str]:
    """A note on which columns the mean averages; the paper's mean may average others."""
    if not averaged:
        return []
    alone = AVERAGE in published(number)["columns"]
    printed = "; of a row for which the paper prints a mean alone, that one" if alone else ""
    return [f"{MEAN}: of {', '.join(averaged)}, of seeds that have them all{printed}."]


def _unfinished(lines: Sequence[TableLine]) -> list[str]:
    """A note on rows with fewer seeds than others."""
    ours = [line for line in lines if line.source == "ours"]
    counts = {line.label: [len(v) for v in line.scores.values()] for line in ours}
    most = max((n for found in counts.values() for n in found), default=0)
    fewer = [label for label, found in counts.items() if found and min(found) < most]
    return [f"fewer seeds than {most} so far, at least in one column: {', '.join(fewer)}."
            ] if fewer else []  # fmt: skip


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


def _unparsable(rows: Sequence[RowResults]) -> list[str]:
    """A note on the share of answers that name no option."""
    worst = {
        row.key: max(
            (s for r in row.results for s in (r.get("unparsable") or {}).values()), default=0
        )
        for row in rows
    }
    named = [f"{key} {share:.1f} %" for key, share in worst.items() if share > 0]
    return [f"answers that name no option, at most: {', '.join(named)}."] if named else []


def _listed(values: Iterable[Any], between: str = ", ") -> str:
    return between.join(dict.fromkeys(map(str, values)))
