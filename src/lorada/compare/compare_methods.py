"""``lorada.compare_methods``: what ``lorada compare`` does, for Python and notebooks."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorada.compare.hours import HOUR, TimeLimit
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import Report
from lorada.compare.run import compare
from lorada.compare.spec import (
    FIXED,
    SPEC_FILE,
    Comparison,
    asked_again,
    comparison_of,
    refuse_taken,
    resumed_comparison,
    saved_comparison,
)
from lorada.training.load_recipe import read_recipe

# Options that all trainings share, as a recipe has them; the others are the comparison's own.
OF_RECIPES = ("model", "data", "task", "data_dir", "columns", "metric")


def compare_methods(
    model: str,
    methods: Sequence[str],
    *,
    output: str | Path,
    data: str | None = None,
    held_out: str | None = None,
    settings: Sequence[str] = (),
    hours: float | None = None,
    workers: int | None = None,
    gpus_per_job: float = 1.0,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = print,
    **options: Any,
) -> dict[str, Any]:
    """Train methods at matched sizes on your rows, and say which differences can be trusted.

    Each training runs in a process of its own. So in a script (not in a notebook) the call belongs
    behind ``if __name__ == "__main__":``, as ``multiprocessing`` asks for.

    Args:
        model: hub id, folder or a packaged name.
        methods: such as ``["lora", "lora:r=1", "ia3"]``.
        output: folder of the comparison.
        data: training rows, a file or a hub id; None with the option ``task``.
        held_out: rows to score, or a share of ``data`` such as ``"20%"``.
        settings: those of all trainings, as ``["max_steps=200", "max_length=256"]``.
        hours: the time that it may take; None for as long as all of it takes.
        workers: how many trainings run at once; None for one for each GPU, or one.
        gpus_per_job: how many GPUs a training has, or which share of one.
        resume: go on with what is in the folder.
        overwrite: delete what is in the folder first, once everything has been checked.
        report: called with lines of progress.
        options: further options of the command by their names, as ``seeds=[1, 2, 3]``,
            ``budgets=["0.2%"]``, ``trials=0``, ``keep="other.jsonl"`` or ``task="sst2"``.

    Returns:
        What ``report.json`` holds; the page is ``report.html`` beside it.

    Raises:
        ValueError: for a mistake in what is given, before anything is trained; and while jobs are
            left to other processes that work on the folder.
        RuntimeError: if a training has failed, with its error; the others are done and stay.
    """
    began_at = time.monotonic()
    folder = Path(output)
    refuse_taken(folder, resume=resume, overwrite=overwrite)
    options |= {"model": model, "data": data, "methods": list(methods), "held_out": held_out}
    comparison = _comparison(folder, settings, options, hours=hours, resume=resume)
    trials_are_fixed = resume or not options.keys().isdisjoint(("trials", "rates"))
    limit = _limit(hours, began_at, gpus_per_job, trials_are_fixed=trials_are_fixed)
    pool = partial(Workers, workers, gpus_per_job)
    compared = compare(comparison, folder, pool, overwrite=overwrite, limit=limit, report=report)
    if compared.failures:
        job, error = next(iter(compared.failures.items()))
        raise RuntimeError(f"{job} failed: {error}")
    if compared.summary is None:
        raise ValueError(f"other processes still work on {folder}: call it again with resume=True")
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def _limit(
    hours: float | None, began_at: float, gpus_per_job: float, *, trials_are_fixed: bool
) -> TimeLimit | None:
    """The time that the comparison may take; None for as long as it takes."""
    if hours is None:
        return None
    return TimeLimit(hours, began_at + hours * HOUR, trials_are_fixed, gpus_per_job)


def _comparison(
    folder: Path,
    settings: Sequence[str],
    options: dict[str, Any],
    *,
    hours: float | None,
    resume: bool,
) -> Comparison:
    """The comparison that options describe, or the one in the folder to go on with."""
    recipe_options = {}
    comparison_options = dict(options)
    for name in OF_RECIPES:
        recipe_options[name] = comparison_options.pop(name, None)
    if resume and (folder / SPEC_FILE).is_file():
        saved = saved_comparison(folder)
        recipe = asked_again(saved, list(settings), recipe_options).complete()
        return resumed_comparison(folder, saved, recipe, comparison_options)
    recipe = read_recipe(None, list(settings), {**recipe_options, **FIXED}).complete()
    return comparison_of(recipe, {**comparison_options, "hours": hours})
