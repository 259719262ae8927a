"""The page of one of the paper's tables: its lines and columns, and what decides if they compare.

Reads results only; what a table is, its caller says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorada.report.tables import (
    AVERAGE,
    MEAN,
    Line,
    Page,
    measured_line,
    published,
    published_line,
)

Columns = dict[str, tuple[str, str | None]]  # name → (task, metric), None for the first metric
Results = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A row of a table, by its key in ``published.yaml``, and the results of its runs so far."""

    key: str
    results: Results


def paper_page(
    number: int,
    title: str,
    rows: Sequence[Row],
    columns: Columns,
    *,
    mean: list[str] | None,
    digits: int,
    differs: Sequence[str] = (),
    unrun: Sequence[str] = (),
) -> Page:
    """Rows of a table beside what the paper printed for them.

    Args:
        number: of the table.
        title: of the page.
        rows: at least one of them with a result.
        columns: of all rows; where rows were scored by different protocols, each has its own.
        mean: the columns that the mean is of; None for all.
        digits: behind the point.
        differs: what the runs differ in from the paper's.
        unrun: keys of rows that the paper prints and nobody can run, as ChatGPT's.

    Raises:
        ValueError: if two runs were scored on different rows of one task.
    """
    _check_rows(rows)
    apart = len({_protocol(row) for row in rows}) > 1
    lines = [line for key in unrun if (line := published_line(number, key))]
    shown: dict[str, None] = {} if apart else dict.fromkeys(columns)
    for row in rows:
        names = {name: f"{name} ({_protocol(row)})" if apart else name for name in columns}
        shown |= dict.fromkeys(names.values())
        averaged = [name for name in columns if mean is None or name in mean]
        printed = published_line(number, row.key, averaged)
        lines += [_renamed(printed, names)] if printed else []
        own = {names[name]: where for name, where in columns.items()}
        label = printed.label if printed else row.key
        lines.append(measured_line(label, row.results, own, [names[n] for n in averaged]))
    has_mean = mean is None or any(name in mean for name in columns)
    results = [result for row in rows for result in row.results]
    notes = [*_about(results), *_means(number, columns, mean), *differs, *_machines(results)]
    notes += _unparsable(rows)
    return Page(title, list(shown), lines, notes, has_mean, digits)


def _protocol(row: Row) -> str | None:
    return next((r["recipe"].get("protocol") for r in row.results), None)


def _renamed(line: Line, names: dict[str, str]) -> Line:
    scores = {names.get(name, name): values for name, values in line.scores.items()}
    spread = {names.get(name, name): value for name, value in line.spread.items()}
    return replace(line, scores=scores, spread=spread)


def _check_rows(rows: Sequence[Row]) -> None:
    """Numbers of different rows of data must not stand side by side."""
    first: dict[tuple[str | None, str], tuple[str, str]] = {}
    for row in rows:
        for result in row.results:
            for task, metrics in result["metrics"].items():
                data = str(metrics.get("sha256"))
                where = f"{row.key}, seed {result['seed']}"
                known = first.setdefault((_protocol(row), task), (data, where))
                if known[0] != data:
                    raise ValueError(
                        f"{task} was scored on other rows in {where} than in {known[1]}: "
                        "run one of them again with --overwrite"
                    )


def _about(results: Results) -> list[str]:
    """Model, seeds, protocol and data of all runs."""
    seeds = sorted({int(r["seed"]) for r in results})
    spread = "; ± is the standard deviation over seeds" if len(seeds) > 1 else ""
    notes = [
        f"ours: {_listed(r['model'] for r in results)}; "
        f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}{spread}."
    ]
    protocols = _listed(p for r in results if (p := r["recipe"].get("protocol")))
    trained = _listed(f"{r['data']['rows']:,}" for r in results if "data" in r)
    sets = _listed(on for r in results if (on := r["recipe"].get("train_on")))
    places = _listed(p for r in results if (p := r.get("data", {}).get("source")))
    parts = [
        f"protocol: {protocols}" if protocols else "",
        f"rows to learn from: {trained}" if trained else "",
        f"train_on: {sets}" if sets else "",
        f"rows are from {places}" if places else "",
    ]
    notes.append("; ".join(filter(None, parts)) + ".")
    sizes = {task: m["n"] for r in results for task, m in r["metrics"].items()}
    notes.append(f"scored rows: {', '.join(f'{task} {n}' for task, n in sizes.items())}.")
    return [note for note in notes if note != "."]


def _means(number: int, columns: Columns, mean: list[str] | None) -> list[str]:
    printed = set(published(number)["columns"]) - {AVERAGE}
    averaged = set(columns) if mean is None else set(mean) & set(columns)
    if not averaged or AVERAGE not in published(number)["columns"] or averaged >= printed:
        return []
    return [f"{MEAN}: over the columns shown, in the paper's lines too; its own is over more."]


def _machines(results: Results) -> list[str]:
    """Hardware and versions, each once."""
    found = []
    for result in results:
        machine, packages = result["hardware"], result["versions"]
        name = machine["accelerator"] or f"{machine['cpu']}, threads: {machine['threads']}"
        of = ", ".join(f"{p} {packages[p]}" for p in ("torch", "transformers", "peft"))
        found.append(f"{name}; {of}")
    return [f"{_listed(found, '; or ')}. Minutes are of training, all seeds and tasks together."]


def _unparsable(rows: Sequence[Row]) -> list[str]:
    """How many answers named no option, of the rows that had such."""
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
