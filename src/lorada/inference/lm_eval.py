"""``lorada evaluate RUN --lm-eval TASKS``: scores a finished run by lm-evaluation-harness.

Prompts, scoring and numbers are that library's; its accuracy is a share, not a percentage. The
model is the run's, with its adapter. `lorada run lm_eval …` does the same with lm-eval's command.
"""

import logging
from importlib.metadata import version
from typing import Any

from lorada.inference.evaluate import BASE
from lorada.inference.load import Run, scoring
from lorada.runs.result import keep_scores, refuse_no_text
from lorada.support.errors import needs_extra, unknown_name
from lorada.training.models.candidate_scores import needs_whole

PREFIX = "lm_eval/"


def evaluate_lm_eval(
    run: Run, names: list[str], *, limit: int | None = None, base: bool = False
) -> dict[str, dict[str, Any]]:
    """Score a run on tasks of lm-eval and keep the numbers in its ``result.json``.

    ``names`` are tasks, groups or tags of lm-eval, or paths of YAML files that define a task. Of
    each task the first ``limit`` rows are taken. ``base`` switches the adapter off.

    Returns:
        By ``lm_eval/TASK``: lm-eval's metrics with their standard errors, the number of rows
        ``n``, and the versions of the task and of lm-eval.

    Raises:
        ImportError: naming the extra, if lm-eval is missing.
        ValueError: for an unknown task, rows that cannot be loaded, or a run that writes no text.
    """
    with needs_extra("eval"):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    refuse_no_text(run.folder, run.form, run.labels)
    # lm-eval warns of intended things, such as a model that is already loaded.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with scoring(run, base=base):
        manager = _task_manager(names)
        # lm-eval pads at the end and gives no mask, so a map with align="end" would count the pads.
        size = 1 if needs_whole(run.model) else run.recipe.eval_batch_size
        found = simple_evaluate(
            HFLM(pretrained=run.model, tokenizer=run.tokenizer, batch_size=size),
            tasks=names,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
        )
    metrics = {f"{PREFIX}{task}": _metrics(found, task) for task in found["results"]}
    named = {f"{name}{BASE if base else ''}": scores for name, scores in metrics.items()}
    keep_scores(run.folder, named)
    return metrics


def _task_manager(names: list[str]) -> Any:
    """lm-eval's task manager; it is checked that it has these tasks and their rows."""
    from lm_eval.tasks import TaskManager

    named = [name for name in names if not name.endswith(".yaml")]
    manager = TaskManager(include_defaults=bool(named))  # the defaults are thousands of files
    for name in named:
        if name not in manager.all_tasks:
            raise unknown_name("task of lm-eval", name, manager.all_tasks)
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # from datasets, the hub's client, or the task's own code
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"lm-eval cannot load its task {name} ({type(error).__name__}: {reason}): its rows "
                "come from the hub; a YAML file of a task with local rows can be given instead"
            ) from error
    return manager


def _metrics(found: dict[str, Any], task: str) -> dict[str, Any]:
    """The metrics of one task; a metric keeps its filter in its name, if it has one."""
    samples = found["n-samples"].get(task, {})
    metrics: dict[str, Any] = {"n": samples["effective"]} if samples else {}
    for key, value in found["results"][task].items():
        metric, comma, kind = key.partition(",")
        if comma and isinstance(value, int | float):
            metrics[metric if kind == "none" else key] = value
    if (task_version := found["versions"].get(task)) is not None:
        metrics["version"] = str(task_version)
    return {**metrics, "lm_eval": version("lm-eval")}
