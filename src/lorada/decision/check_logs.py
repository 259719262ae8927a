"""Refuses logs from which methods cannot be compared row by row."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lorada.decision.log_records import Log
from lorada.decision.log_runs import Run, RunName
from lorada.support.in_words import counted

SHOWN = 3  # rows in a line


def finished_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs whose logs came to their end, and a sentence on each log that is left out.

    Inspect leaves the log of a failed evaluation beside that of the next attempt, so an unfinished
    log is left out if there is a finished one of the same run and task, and refused otherwise.
    """
    finished_tasks = {(run.name, run.log.task) for run in runs if not run.log.unfinished}
    finished, sentences = [], []
    for run in runs:
        if not run.log.unfinished:
            finished.append(run)
        elif (run.name, run.log.task) in finished_tasks:
            sentences.append(f"{run.log.path.name} is left out, as it was not finished")
        else:
            raise not_finished(run.log)
    return finished, sentences


def not_finished(log: Log) -> ValueError:
    """An error (returned, not raised) for the log of an evaluation that did not end."""
    reason = " ".join(log.unfinished.split())  # in one line
    return ValueError(f"{log.path} is not finished ({reason}): go on with inspect eval-retry")


def refuse_second_answers(runs: Sequence[Run]) -> None:
    """Refuse two logs of one run and task, and two answers of a log to one row and repeat."""
    log_paths: dict[tuple[RunName, str], Path] = {}
    for run in runs:
        first_path = log_paths.setdefault((run.name, run.log.task), run.log.path)
        if first_path != run.log.path:
            raise ValueError(
                f"{run.shown}, has two answers for each row, in {first_path} and {run.log.path}: "
                "leave one out, or give each run a folder METHOD-SEED"
            )
        answered = set()
        for row in run.rows:
            if (row.row, row.repeat) in answered:
                raise ValueError(f"{run.log.path} has two answers for row {row.row}: leave one out")
            answered.add((row.row, row.repeat))


def refuse_other_contents(runs: Sequence[Run]) -> None:
    """Refuse rows of one task that have the same id in two logs and are not the same."""
    first_contents: dict[tuple[str, str], str] = {}
    first_paths: dict[tuple[str, str], Path] = {}
    for run in runs:
        for row in run.rows:
            task_and_row = (run.log.task, row.row)
            first_path = first_paths.setdefault(task_and_row, run.log.path)
            if first_contents.setdefault(task_and_row, row.content) != row.content:
                raise ValueError(
                    f"row {row.row} of {run.log.path} is another one than in {first_path}: "
                    "evaluate all runs on the same rows"
                )


def refuse_failed_rows(runs: Sequence[Run], metric: str) -> None:
    """Refuse a run that has no score of a row, as there was no answer, and say why.

    Such a row is not wrong, as the next attempt may get an answer, and not to be left out for all
    either: what fails is often what is long or hard.
    """
    for run in runs:
        failed = [row for row in run.rows if metric not in row.scores]
        if not failed:
            continue
        first, *others = failed
        reason = " ".join(first.error.split())  # in one line
        more = f", nor of {len(others)} more" if others else ""
        raise ValueError(
            f"{run.shown}, has no score of row {first.row} ({reason}){more}: evaluate "
            f"{run.log.path} again"
        )


def refuse_missing_rows(runs: Sequence[Run]) -> None:
    """Refuse a run that lacks rows that another has, in any of the tasks."""
    # A run may have several logs, one for each task, so rows are gathered by the run's name.
    rows_of_runs: dict[RunName, set[tuple[str, str]]] = defaultdict(set)
    all_rows: dict[tuple[str, str], None] = {}  # task and row, in the order of the logs
    for run in runs:
        for row in run.rows:
            rows_of_runs[run.name].add((run.log.task, row.row))
            all_rows[run.log.task, row.row] = None
    for name, rows_of_run in rows_of_runs.items():
        missing = [task_and_row for task_and_row in all_rows if task_and_row not in rows_of_run]
        if missing:
            # A task without a name, as promptfoo's, leaves no blank before its row.
            shown = ", ".join(f"{task} {row}".strip() for task, row in missing[:SHOWN])
            raise ValueError(
                f"{name.method}, seed {name.seed}, lacks {len(missing):,} of "
                f"{counted(len(all_rows), 'row')} that others have, such as {shown}: evaluate all "
                "runs on the same rows"
            )
