"""The jobs of a table: lists them, finds their stored results, and trains and scores them.

Results are kept outside of the run folders, one file each, so that they can be committed:
``RESULTS/table5/local/lora/rte/seed1.json``. An interrupted table continues with the runs that have
no result.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lorada.compare.jobs.job import Job, Outcome, held, report
from lorada.compare.jobs.queue import run_queue
from lorada.compare.learning_rate import train_on
from lorada.data.files.benchmark_files import data_folder
from lorada.data.tasks import TASKS
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.paper.beside_scores import guessing_scores
from lorada.paper.table_spec import PaperTable, Scale, TableRow, row_recipe
from lorada.runs.folder import clear, differences, holds_run
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, RunResult, read_result, result_in
from lorada.support.files import json_text, write_atomic
from lorada.support.models import MODELS
from lorada.support.progress import progress_bar
from lorada.training.parameter_counts import counts_of

SEED = re.compile(r"seed(\d+)\.json")


class Folders(NamedTuple):
    """Where the runs of a table are, what is kept of them, and the benchmarks' rows."""

    results: Path
    output: Path
    data_dir: str | None = None


@dataclass(frozen=True)
class TableJob:
    """One run of a table: one row, one seed, and one task or all tasks together."""

    row: TableRow
    tasks: list[str]
    seed: int
    recipe: Recipe
    stored: Path  # the file of its result

    def for_queue(self) -> Job:
        """This job as the queue runs it."""
        return Job(
            f"{self.row.key}, {self.recipe.task}, seed {self.seed}",
            partial(train_and_score, self),
            Path(self.recipe.output),
            partial(is_done, self),
            reads=tuple(path for _, path in self.recipe.local_paths()),
        )


def list_jobs(
    table: PaperTable,
    scale: Scale,
    *,
    rows: list[str] | None = None,
    tasks: list[str] | None = None,
    seeds: list[int] | None = None,
    folders: Folders,
    overrides: Sequence[str] = (),
) -> list[TableJob]:
    """All runs of the chosen rows, tasks and seeds, row by row.

    ``overrides`` are ``key=value`` settings that every run gets, as for a first try.
    """
    # Each once and in the table's order, because the tasks are part of a run's path.
    chosen = table.tasks_at(scale, tasks)
    ordered = [task for task in table.tasks if task in chosen]
    task_groups = [ordered]  # one run learns all
    if table.train == "each":
        task_groups = [[task] for task in ordered]
    jobs = []
    for row in table.rows_at(scale, rows):
        for group in task_groups:
            for seed in dict.fromkeys(seeds or table.seeds):
                path = Path(row.key) / "-".join(group) / f"seed{seed}"
                run = folders.output / f"{table.name}-{scale}" / path
                recipe = row_recipe(table, row, scale, group, seed, run, overrides)
                recipe = recipe.model_copy(update={"data_dir": folders.data_dir})
                stored = folders.results / table.name / scale / f"{path}.json"
                jobs.append(TableJob(row, group, seed, recipe, stored))
    return jobs


def load_complete_result(job: TableJob) -> RunResult | None:
    """The stored result of a run; None if there is none or some of its tasks have no score.

    Raises:
        ValueError: if the file holds something else, or the result of other settings.
    """
    if not job.stored.is_file():
        return None
    try:
        result = result_in(job.stored)
        stored_recipe = _recipe_in(result)
        scored = _is_scored(job, result)
    except (KeyError, TypeError, ValueError) as error:  # pydantic's is one too
        raise ValueError(f"{job.stored} is not the result of a run: delete it") from error
    _check_recipe(job.stored, stored_recipe, job)
    if not scored:
        return None
    return result


def load_usable_result(job: TableJob, say: Callable[[str], None]) -> RunResult | None:
    """The stored result of a run; None, with a line that says why, if it cannot be used."""
    try:
        return load_complete_result(job)
    except ValueError as error:
        say(f"left out: {error}")
        return None


def is_done(job: TableJob) -> bool:
    """Whether a run has a stored result with all scores."""
    return load_complete_result(job) is not None


def stored_rows(
    table: PaperTable,
    scale: Scale,
    tasks: list[str] | None,
    results: Path,
    *,
    report: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> list[tuple[TableRow, RunResult]]:
    """All stored results in the folder ``results``, each with its row.

    ``tasks`` are those of the run of a table that has one for all tasks; None for the scale's.
    """
    folder = results / table.name / scale
    seeds = _stored_seeds(folder)
    row_keys = [row.key for row in table.rows_at(scale, None) if (folder / row.key).is_dir()]
    if not seeds or not row_keys:
        return []
    if table.train == "each":
        tasks = table.tasks
    # Every result that may be there, so that only files of this table's runs are read.
    jobs = list_jobs(
        table,
        scale,
        rows=row_keys,
        tasks=tasks,
        seeds=seeds,
        folders=Folders(results, Path()),
        overrides=overrides,
    )
    stored = []
    for job in jobs:
        result = load_usable_result(job, report)
        if result is not None:
            stored.append((job.row, result))
    return stored


def _stored_seeds(folder: Path) -> list[int]:
    """The seeds of all results below a folder, in order."""
    seeds = set()
    for path in folder.rglob("seed*.json"):
        match = SEED.fullmatch(path.name)
        if match:
            seeds.add(int(match[1]))
    return sorted(seeds)


def _check_recipe(path: Path, stored: Recipe, job: TableJob) -> None:
    """Refuse a result of other settings than those of its job; the first that differs is named."""
    for key, old, new in differences(stored, _with_hub_model(job.recipe)):
        raise ValueError(
            f"{path} was made with {key}={old!r}, not {new!r}: choose another --results and "
            "--output, or --overwrite"
        )


def _recipe_in(result: RunResult) -> Recipe:
    """The whole recipe of a run, from its result.

    Raises:
        ValueError: if the result has none.
    """
    if result.recipe is None:
        raise ValueError("it has no recipe")
    return Recipe(**result.recipe.stored())


def _is_scored(job: TableJob, result: RunResult) -> bool:
    """Whether a run was scored on all test rows of its tasks."""
    test_sets = set()
    for task in job.tasks:
        # A task may have several test sets, as MNLI has a matched and a mismatched one.
        for suffix in TASKS[task].test:
            test_sets.add(f"{task}_{suffix}" if suffix else task)
    return test_sets <= set(result.metrics)


def _with_hub_model(recipe: Recipe) -> Recipe:
    """The recipe with the short name of its model replaced by the hub id, if it has one."""
    named_model = MODELS.get(recipe.model)
    if named_model is None or not named_model.hub:
        return recipe.model_copy()
    return recipe.model_copy(update={"model": named_model.hub})


def delete_runs(jobs: list[TableJob]) -> None:
    """Delete the results and run folders of jobs, if their rows are there and no process has them.

    All are deleted before any runs again, so that an interrupted table never mixes old and new
    numbers.
    """
    folders = [Path(job.recipe.output) for job in jobs]
    runs = [folder for folder in folders if holds_run(folder)]
    # Nothing is deleted that could not be made again.
    for job in jobs:
        data_folder(job.recipe.data_dir)
    with held(runs):
        for job in jobs:
            job.stored.unlink(missing_ok=True)
        for run in runs:
            clear(run)


def train_and_score(job: TableJob) -> None:
    """Train and score one job in this process, as far as it is not done, and store its result.

    What is stored of another recipe is refused, and scores that could not be kept are an error.
    """
    recipe = _with_hub_model(job.recipe)
    run = Path(recipe.output)
    if not (run / RESULT_FILE).is_file():
        train_on(recipe, "training")
    result = read_result(run)
    _check_recipe(run / RESULT_FILE, _recipe_in(result), job)
    if not _is_scored(job, result):
        report("scoring")
        evaluate_tasks(load_run(run), recipe.data_dir)
        result = read_result(run)
        if not _is_scored(job, result):  # the reason was logged
            raise OSError(f"the scores of {run} were not kept: run the command again")
    write_atomic(job.stored, json_text(_to_commit(job, result).stored()) + "\n")


def _to_commit(job: TableJob, result: RunResult) -> RunResult:
    """The result of a run as it is committed: without local paths, with scores of guessing.

    A result that does not say what was learned is refused.
    """
    recipe, data = result.recipe, result.data
    if recipe is None or data is None:
        raise ValueError(f"{job.recipe.output} does not say what it learned: --overwrite it")
    is_local = data_folder(job.recipe.data_dir) is not None
    source = "a local folder" if is_local else "the hub"
    output = str(Path(job.recipe.output))
    changes = {
        "recipe": recipe.model_copy(update={"data_dir": None, "output": output}),
        "data": data.model_copy(update={"source": source}),
        "guessing": guessing_scores(job.recipe, result.form, result.labels),
    }
    return result.model_copy(update=changes)


def run_all(
    jobs: list[TableJob], *, say: Callable[[str], None], resume: bool, overwrite: bool, pool: Any
) -> tuple[list[RunResult | None], dict[str, Outcome]]:
    """Run the jobs that have no result yet.

    ``resume`` keeps the results that exist, ``overwrite`` deletes them first.

    Results that are there without either option are refused before any job starts.

    Returns:
        The stored result of each job in order, None where there is none; and what became of each
        job that was to be run, by its name.
    """
    existing = [job.stored for job in jobs if job.stored.is_file()]
    if existing and not (resume or overwrite):
        raise ValueError(f"{existing[0]} is there already: use --resume, --overwrite or --results")
    to_run = jobs
    if not overwrite:
        to_run = [job for job in jobs if not is_done(job)]
    for job in progress_bar(to_run, "Counting parameters"):
        counts_of(job.recipe)  # fails for a row that cannot be built, before any row is trained
    if overwrite:
        delete_runs(to_run)
    # The queue gets those that are done as well, and says how many they are.
    queue = [job.for_queue() for job in jobs]
    outcomes = run_queue(queue, pool, report=say)
    return [load_usable_result(job, say) for job in jobs], outcomes
