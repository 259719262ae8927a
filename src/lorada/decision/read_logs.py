"""Reads scores from what other tools have written: logs of lm-eval, Inspect and promptfoo."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lorada.decision.check_logs import (
    finished_runs,
    not_finished,
    refuse_failed_rows,
    refuse_missing_rows,
    refuse_other_contents,
    refuse_second_answers,
)
from lorada.decision.log_notes import left_out, on_repeats, rows_wrong_in_all, summary_of_logs
from lorada.decision.log_records import PROMPTFOO, Log, read_json
from lorada.decision.log_runs import Run, name_runs
from lorada.decision.read_inspect import is_inspect, read_inspect, read_inspect_zip
from lorada.decision.read_lm_eval import SAMPLES, is_sample, read_lm_eval
from lorada.decision.read_promptfoo import PASSED, is_promptfoo, read_promptfoo
from lorada.decision.read_scores import ScoreTable, read_scores
from lorada.support.error_messages import unknown_name

READ = (
    "lm-eval's samples_*.jsonl (lm_eval --log_samples), Inspect's .eval or .json, and promptfoo's "
    ".json (promptfoo eval --output FILE.json)"
)
TOTALS = (  # keys of files of a whole run: lm-eval's without samples, PEFT's method_comparison
    {"results", "configs"},
    {"run_info", "train_info"},
)


@dataclass(frozen=True)
class LogScores:
    """The scores in logs."""

    table: ScoreTable
    metric: str
    lower_is_better: bool
    notes: tuple[str, ...]  # sentences on what was read


def holds_logs(path: Path) -> bool:
    """Whether a path is a folder, or a file that another tool has logged and that is no table."""
    if path.is_dir() or path.suffix == ".eval":
        return True
    if path.suffix == ".json":
        content = read_json(path)
        return is_inspect(content) or is_promptfoo(content) or _is_total(content)
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            return is_sample(file.readline())
    return False


def read_logs(path: Path, metric: str | None = None, *, lower_is_better: bool = False) -> LogScores:
    """Read the scores of all logs in a folder, or in a file.

    Rows are matched by their task and their id.

    Args:
        path: of a folder, in which logs may lie at any depth, or of one log.
        metric: whose scores are read; None where there is only one.
        lower_is_better: whether scores are losses or errors, where the logs do not say so.

    Raises:
        ValueError: for a path without logs, logs of two tools, several metrics if none is given, a
            metric that no log has, one that is better the higher although ``lower_is_better``, two
            answers to a row, rows that differ between runs, and a log that is broken or not
            finished.
    """
    logs = _logs_in(path)
    metric = _chosen_metric(path, logs, metric)
    # A log whose answers all failed has no metric, and is not to be passed over.
    tasks = {log.task for log in logs if metric in log.metrics}
    with_metric = [log for log in logs if log.task in tasks]
    runs = [
        Run(name, log, tuple(row for row in log.rows if metric in row.scores or row.error))
        for name, log in zip(name_runs(with_metric), with_metric, strict=True)
    ]
    runs, unfinished = finished_runs(runs)
    refuse_second_answers(runs)
    refuse_failed_rows(runs, metric)
    refuse_other_contents(runs)
    refuse_missing_rows(runs)

    by_logs = _direction(runs, metric)
    if lower_is_better and by_logs is False:
        raise ValueError(f"--lower-is-better, but {path} says that a higher {metric} is better")
    lower_is_better = lower_is_better or bool(by_logs)
    repeats_are_runs = _repeats_are_runs(runs)
    table = read_scores(_table_rows(runs, metric, by_repeat=repeats_are_runs), str(path))
    notes = [
        summary_of_logs(runs, metric),
        *dict.fromkeys(run.log.remarks[metric] for run in runs if metric in run.log.remarks),
        *left_out(logs, metric),
        *unfinished,
        *([] if lower_is_better else rows_wrong_in_all(runs, metric)),
        *on_repeats(runs, repeats_are_runs=repeats_are_runs),
    ]
    return LogScores(table, metric, lower_is_better, tuple(notes))


def _logs_in(path: Path) -> list[Log]:
    """All logs in a folder, or in a file."""
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    logs: list[Log] = []
    totals = []
    for file in filter(Path.is_file, files):
        folders = file.relative_to(root).parts[:-1]
        if file.suffix == ".eval":
            logs.append(read_inspect_zip(file, folders))
        # Other JSON Lines may lie about in a folder, but not be named.
        elif file.suffix == ".jsonl" and (file.name.startswith(SAMPLES) or file == path):
            logs.append(read_lm_eval(file, folders))
        elif file.suffix == ".json":
            content = read_json(file)
            own_name = (file.stem,) if path.is_dir() else ()
            logs.extend(_logs_of_json(content, file, folders, own_name))
            totals += [file] if _is_total(content) else []
    _refuse_none_or_mixed(path, logs, totals)
    return logs


def _logs_of_json(
    content: Any, file: Path, folders: tuple[str, ...], own_name: tuple[str, ...]
) -> list[Log]:
    """The logs in a JSON file; none where another program wrote it."""
    if is_inspect(content):
        return [read_inspect(content, file, folders)]
    if is_promptfoo(content):
        # Its file is named by the user, where Inspect names it by date and task.
        return read_promptfoo(content, file, (*folders, *own_name))
    return []


def _refuse_none_or_mixed(path: Path, logs: Sequence[Log], totals: Sequence[Path]) -> None:
    """Refuse a path without logs, and one with logs of several tools."""
    if not logs and totals:
        raise ValueError(
            f"{totals[0]} has totals of whole runs, which say nothing of rows: evaluate again with "
            "the answers logged (lm_eval --log_samples); docs/published.md says what totals show"
        )
    if not logs:
        raise ValueError(f"{path} has no logs with scores of rows, such as {READ}")
    tools = dict.fromkeys(log.tool for log in logs)
    if len(tools) > 1:
        raise ValueError(
            f"{path} has logs of {' and of '.join(tools)}: give a folder of one of them"
        )


def _is_total(content: Any) -> bool:
    """Whether a JSON file has totals of whole runs."""
    return isinstance(content, dict) and any(keys <= content.keys() for keys in TOTALS)


def _chosen_metric(path: Path, logs: Sequence[Log], metric: str | None) -> str:
    """The metric to read."""
    metrics = sorted({name for log in logs for name in log.metrics})
    if not metrics:
        unfinished = [log for log in logs if log.unfinished]
        if unfinished:
            raise not_finished(unfinished[0])
        raise ValueError(f"{path} has no score that is a number")
    if metric is not None:
        name = metric.removesuffix(",none")  # lm-eval's name of a metric without a filter
        if name not in metrics:
            raise unknown_name("--metric", metric, metrics)
        return name
    if len(metrics) == 1:
        return metrics[0]
    if logs[0].tool == PROMPTFOO:
        return PASSED
    raise ValueError(f"{path} has {len(metrics)} metrics: pass --metric {' or '.join(metrics)}")


def _repeats_are_runs(runs: Sequence[Run]) -> bool:
    """Whether several answers of a model to each row stand for several runs of a method.

    They do where each method is one model, so that nothing else says how its answers vary. Where
    a method was trained with several seeds, they say nothing of how trainings differ, so that
    taking them for runs would make too much of these.
    """
    seeds: dict[str, set[str]] = defaultdict(set)
    repeats: dict[tuple[str, str, str], int] = defaultdict(int)
    for run in runs:
        seeds[run.name.method].add(run.name.seed)
        for row in run.rows:
            repeats[run.name.method, run.log.task, row.row] += 1
    each_is_one_model = all(len(of_method) == 1 for of_method in seeds.values())
    fewest, most = min(repeats.values()), max(repeats.values())
    return each_is_one_model and fewest == most > 1


def _table_rows(runs: Sequence[Run], metric: str, *, by_repeat: bool) -> list[Mapping[str, object]]:
    """The scores as rows of a table: one for each run and row."""
    several_tasks = len({run.log.task for run in runs}) > 1
    table: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        for row in run.rows:
            seed = str(row.repeat + 1) if by_repeat else run.name.seed
            name = f"{run.log.task} {row.row}" if several_tasks else row.row
            table[run.name.method, seed, name].append(row.scores[metric])
    return [
        {"method": method, "seed": seed, "row": row, "score": fmean(scores)}
        for (method, seed, row), scores in table.items()
    ]


def _direction(runs: Sequence[Run], metric: str) -> bool | None:
    """Whether lower scores are better, as the logs say; None where they do not."""
    directions = {run.log.lower_is_better.get(metric) for run in runs} - {None}
    if len(directions) > 1:
        raise ValueError(
            f"{metric} is better the higher in some tasks and the lower in others: give a folder "
            "of tasks of one kind"
        )
    return next(iter(directions), None)
