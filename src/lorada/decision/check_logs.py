"""Refuses logs from which methods cannot be compared row by row."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lorada.decision.log_records import Log
from lorada.decision.log_runs import Run, RunName
from lorada.support.in_words import counted

SHOWN = 3  # rows in a line


def finished_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
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
            raise not_finished(run.log)
    return finished, sentences


def not_finished(log: Log) -> ValueError:
    """An error for the log of an evaluation that did not come to its end."""
    reason = " ".join(log.unfinished.split())
    return ValueError(f"{log.path} is not finished ({reason}): go on with inspect eval-retry")


def refuse_second_answers(runs: Sequence[Run]) -> None:
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


def refuse_other_contents(runs: Sequence[Run]) -> None:
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


def refuse_failed_rows(runs: Sequence[Run], metric: str) -> None:
    """Refuse a run that has no answer to a row.

    Such a row is not wrong, as the next attempt may get an answer, and not to be left out for all
    either: what fails is often what is long or hard.
    """
    for run in runs:
        failed = [row for row in run.rows if metric not in row.scores]
        if failed:
            reason = " ".join(failed[0].error.split())
            more = f", nor of {len(failed) - 1} more" if len(failed) > 1 else ""
            raise ValueError(
                f"{run.shown}, has no score of row {failed[0].row} ({reason}){more}: evaluate "
                f"{run.log.path} again"
            )


def refuse_missing_rows(runs: Sequence[Run]) -> None:
    """Refuse a run that lacks rows that another has."""
    rows_of_runs: dict[RunName, set[tuple[str, str]]] = defaultdict(set)
    all_rows: dict[tuple[str, str], None] = {}  # in the order of the logs
    for run in runs:
        for row in run.rows:
            rows_of_runs[run.name].add((run.log.task, row.row))
            all_rows[run.log.task, row.row] = None
    for name, rows in rows_of_runs.items():
        missing = [place for place in all_rows if place not in rows]
        if missing:
            shown = ", ".join(" ".join(filter(None, place)) for place in missing[:SHOWN])
            raise ValueError(
                f"{name.method}, seed {name.seed}, lacks {len(missing):,} of "
                f"{counted(len(all_rows), 'row')} that others have, such as {shown}: evaluate all "
                "runs on the same rows"
            )
