"""Reads scores from what other tools have written: logs of lm-eval, Inspect and promptfoo."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lorada.decision.log_records import INSPECT, LM_EVAL, PROMPTFOO, Log, LogRow, read_json
from lorada.decision.log_runs import RunName, name_runs
from lorada.decision.read_inspect import is_inspect, read_inspect, read_inspect_zip
from lorada.decision.read_lm_eval import SAMPLES, is_sample, read_lm_eval
from lorada.decision.read_promptfoo import PASSED, is_promptfoo, read_promptfoo
from lorada.decision.read_scores import ScoreTable, read_scores
from lorada.support.error_messages import unknown_name
from lorada.support.in_words import counted

READ = (
    "lm-eval's samples_*.jsonl (lm_eval --log_samples), Inspect's .eval or .json, and promptfoo's "
    ".json (promptfoo eval --output FILE.json)"
)
TOTALS = (  # keys of files of a whole run: lm-eval's without samples, PEFT's method_comparison
    {"results", "configs"},
    {"run_info", "train_info"},
)
RUNS_COME_FROM = {
    LM_EVAL: "Runs of one method with several seeds are read from folders METHOD-SEED",
    INSPECT: "Runs of one method are read from folders METHOD-SEED, or come from --epochs",
    PROMPTFOO: "Runs of one method are read from files METHOD-SEED.json, or come from --repeat",
}
SHOWN = 3  # names of rows or tasks in a line


@dataclass(frozen=True)
class LogScores:
    """The scores in logs."""

    table: ScoreTable
    metric: str
    lower_is_better: bool | None  # None where the logs do not say
    notes: tuple[str, ...]  # sentences on what was read


@dataclass(frozen=True)
class _Run:
    """A log, the run that it is of, and its rows that have the metric."""

    name: RunName
    log: Log
    rows: tuple[LogRow, ...]

    @property
    def shown(self) -> str:
        """The run in an error."""
        return f"{self.name.method}, seed {self.name.seed}"


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


def read_logs(path: Path, metric: str | None = None) -> LogScores:
    """Read the scores of all logs in a folder, or in a file.

    Rows are matched by their task and their id.

    Args:
        path: of a folder, in which logs may lie at any depth, or of one log.
        metric: whose scores are read; None where there is only one.

    Raises:
        ValueError: for a path without logs, logs of two tools, several metrics if none is given, a
            metric that no log has, two answers to a row, rows that differ between runs, and a log
            that is broken or not finished.
    """
    logs = _logs_in(path)
    metric = _chosen_metric(path, logs, metric)
    # A log whose answers all failed has no metric, and is not to be passed over.
    tasks = {log.task for log in logs if metric in log.metrics}
    with_metric = [log for log in logs if log.task in tasks]
    runs = [
        _Run(name, log, tuple(row for row in log.rows if metric in row.scores or row.error))
        for name, log in zip(name_runs(with_metric), with_metric, strict=True)
    ]
    runs, unfinished = _finished(runs)
    _refuse_second_answers(runs)
    _refuse_other_contents(runs)
    _refuse_missing_rows(runs, metric)

    repeats_are_runs = _repeats_are_runs(runs)
    table = read_scores(_table_rows(runs, metric, by_repeat=repeats_are_runs), str(path))
    notes = [
        _what_is_read(runs, metric),
        *dict.fromkeys(run.log.remarks[metric] for run in runs if metric in run.log.remarks),
        *_left_out(logs, metric),
        *unfinished,
        *_on_repeats(runs, repeats_are_runs=repeats_are_runs),
    ]
    return LogScores(table, metric, _direction(runs, metric), tuple(notes))


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
        elif file.suffix == ".jsonl" and (file.name.startswith(SAMPLES) or file == path):
            logs.append(read_lm_eval(file, folders))
        elif file.suffix == ".json":
            content = read_json(file)
            if is_inspect(content):
                logs.append(read_inspect(content, file, folders))
            elif is_promptfoo(content):
                own_name = (file.stem,) if path.is_dir() else ()
                logs.extend(read_promptfoo(content, file, (*folders, *own_name)))
            elif _is_total(content):
                totals.append(file)
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
    return logs


def _is_total(content: Any) -> bool:
    """Whether a JSON file has totals of whole runs."""
    return isinstance(content, dict) and any(keys <= content.keys() for keys in TOTALS)


def _chosen_metric(path: Path, logs: Sequence[Log], metric: str | None) -> str:
    """The metric to read."""
    metrics = sorted({name for log in logs for name in log.metrics})
    if not metrics:
        unfinished = [log for log in logs if log.unfinished]
        if unfinished:
            raise _not_finished(unfinished[0])
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


def _finished(runs: Sequence[_Run]) -> tuple[list[_Run], list[str]]:
    """The runs of logs that came to their end, and a sentence on those that did not.

    Inspect leaves the log of a failed evaluation beside that of the next attempt.
    """
    ends = {(run.name, run.log.task) for run in runs if not run.log.unfinished}
    finished, sentences = [], []
    for run in runs:
        if not run.log.unfinished:
            finished.append(run)
        elif (run.name, run.log.task) in ends:
            sentences.append(f"{run.log.path.name} is left out, as it was not finished")
        else:
            raise _not_finished(run.log)
    return finished, sentences


def _not_finished(log: Log) -> ValueError:
    reason = " ".join(log.unfinished.split())
    return ValueError(f"{log.path} is not finished ({reason}): go on with inspect eval-retry")


def _refuse_second_answers(runs: Sequence[_Run]) -> None:
    """Refuse two logs of one run, and two answers of a log to one row."""
    paths: dict[tuple[RunName, str], Path] = {}
    for run in runs:
        other = paths.setdefault((run.name, run.log.task), run.log.path)
        if other != run.log.path:
            raise ValueError(
                f"{run.shown}, has two answers for each row, in {other} and {run.log.path}: leave "
                "one out, or give each run a folder METHOD-SEED"
            )
        answers = set()
        for row in run.rows:
            if (row.row, row.repeat) in answers:
                raise ValueError(f"{run.log.path} has two answers for row {row.row}: leave one out")
            answers.add((row.row, row.repeat))


def _refuse_other_contents(runs: Sequence[_Run]) -> None:
    """Refuse rows that have the same id and are not the same."""
    first: dict[tuple[str, str], tuple[str, Path]] = {}
    for run in runs:
        for row in run.rows:
            content, path = first.setdefault((run.log.task, row.row), (row.content, run.log.path))
            if content != row.content:
                raise ValueError(
                    f"row {row.row} of {run.log.path} is another one than in {path}: evaluate all "
                    "runs on the same rows"
                )


def _refuse_missing_rows(runs: Sequence[_Run], metric: str) -> None:
    """Refuse a run that has no score of a row that another has."""
    names: dict[RunName, dict[tuple[str, str], LogRow]] = defaultdict(dict)
    for run in runs:
        for row in run.rows:
            if metric not in row.scores:
                reason = " ".join(row.error.split())
                failed = sum(metric not in other.scores for other in run.rows)
                more = f", nor of {failed - 1} more" if failed > 1 else ""
                raise ValueError(
                    f"{run.shown}, has no score of row {row.row} ({reason}){more}: evaluate "
                    f"{run.log.path} again"
                )
            names[run.name][run.log.task, row.row] = row
    all_rows = dict.fromkeys(place for rows in names.values() for place in rows)
    for name, rows in names.items():
        missing = [place for place in all_rows if place not in rows]
        if missing:
            shown = ", ".join(" ".join(filter(None, place)) for place in missing[:SHOWN])
            raise ValueError(
                f"{name.method}, seed {name.seed}, lacks {len(missing):,} of "
                f"{counted(len(all_rows), 'row')} that others have, such as {shown}: evaluate all "
                "runs on the same rows"
            )


def _repeats_are_runs(runs: Sequence[_Run]) -> bool:
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
    counts = set(repeats.values())
    return (
        all(len(of_method) == 1 for of_method in seeds.values())
        and len(counts) == 1
        and counts != {1}
    )


def _table_rows(
    runs: Sequence[_Run], metric: str, *, by_repeat: bool
) -> list[Mapping[str, object]]:
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


def _direction(runs: Sequence[_Run], metric: str) -> bool | None:
    """Whether lower scores are better, as the logs say."""
    directions = {run.log.lower_is_better.get(metric) for run in runs} - {None}
    if len(directions) > 1:
        raise ValueError(
            f"{metric} is better the higher in some tasks and the lower in others: give a folder "
            "of tasks of one kind"
        )
    return next(iter(directions), None)


def _what_is_read(runs: Sequence[_Run], metric: str) -> str:
    """The metric, the tasks and the runs, so that a user sees how folders were understood."""
    seeds: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        seeds[run.name.method][run.name.seed] = None
    has_seeds = any(len(of_method) > 1 for of_method in seeds.values())
    methods = []
    for method, of_method in seeds.items():
        word = "seed" if len(of_method) == 1 else "seeds"
        methods.append(f"{method} ({word} {', '.join(of_method)})" if has_seeds else method)
    tasks = list(dict.fromkeys(run.log.task for run in runs if run.log.task))
    of_tasks = f" of {', '.join(tasks[:SHOWN])}" if tasks else ""
    if len(tasks) > SHOWN:
        of_tasks += f" and {counted(len(tasks) - SHOWN, 'task')} more"
    return f"{metric}{of_tasks}, from logs of {runs[0].log.tool}: {', '.join(methods)}"


def _left_out(logs: Sequence[Log], metric: str) -> list[str]:
    """A sentence on the tasks that do not have the metric."""
    with_metric = {log.task for log in logs if metric in log.metrics}
    tasks = list(dict.fromkeys(log.task for log in logs if log.task not in with_metric))
    if not tasks:
        return []
    more = f" and {len(tasks) - SHOWN} more" if len(tasks) > SHOWN else ""
    return [f"Tasks without {metric} are left out: {', '.join(tasks[:SHOWN])}{more}"]


def _on_repeats(runs: Sequence[_Run], *, repeats_are_runs: bool) -> list[str]:
    """A sentence on several answers of a model to a row, or on runs where there are none."""
    if repeats_are_runs:
        return ["Runs are answers drawn again from one model, and say nothing of another training"]
    if any(row.repeat for run in runs for row in run.rows):
        return ["Of several answers of a model to a row the mean is taken"]
    methods = {run.name.method for run in runs}
    if len({run.name for run in runs}) == len(methods) > 1:
        return [RUNS_COME_FROM[runs[0].log.tool]]
    return []
