"""The jobs of a comparison: trials of learning rates, final runs, and the scores without training.

Each may be called again after an interrupt or a kill: it does what is not done yet.
"""

import gc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lorada.experiments.compare.data import read_data, shared_recipe
from lorada.experiments.compare.learning_rate import (
    MAP,
    MAP_RATE,
    MEASURED,
    at_rate,
    chosen_rate,
    run_trial,
    trial_done,
)
from lorada.experiments.compare.plan import Candidate, Plan
from lorada.experiments.compare.spec import Comparison
from lorada.experiments.queue.job import Job
from lorada.runs.data.rows import Rows
from lorada.runs.folder.folder import holds_run
from lorada.runs.folder.predictions import PREDICTIONS_FILE, read_predictions
from lorada.runs.folder.result import RESULT_FILE, read_result
from lorada.runs.inference.evaluate import evaluate, evaluate_tasks, has_tasks
from lorada.runs.inference.forgetting import forgetting
from lorada.runs.inference.load import Run, load_run
from lorada.runs.prepare import prepare
from lorada.runs.recipe import Recipe
from lorada.runs.training.train import train
from lorada.support.files import json_text, write_atomic
from lorada.support.progress import only_reports
from lorada.tasks.row_scores import row_scores
from lorada.tasks.rows import answer_of

TRIALS, RUNS = "trials", "runs"  # folders of a comparison
BASELINES, BASELINES_FILE = "baselines", "baselines.json"
SAVES = 10  # how often a training saves a checkpoint, unless that is after fewer steps than:
LEAST_STEPS = 10


def comparison_jobs(comparison: Comparison, plan: Plan, folder: Path) -> list[Job]:
    """The trials and the final runs of all candidates, candidate by candidate."""
    found: list[Job] = []
    for candidate in plan.runnable:
        trials = _trial_jobs(comparison, plan, candidate, folder)
        found += [*trials, *_final_jobs(comparison, plan, candidate, folder, trials)]
    return found


def _trial_jobs(
    comparison: Comparison, plan: Plan, candidate: Candidate, folder: Path
) -> list[Job]:
    """The trials of one candidate, each after the one before, because that one may stop it."""
    place, count = folder / TRIALS / candidate.path, comparison.trials
    recipe = _recipe(comparison, plan, candidate, place, comparison.seeds[0], {
        "eval_strategy": "steps", "eval_steps": -(-plan.steps // MEASURED),
    }).model_copy(update={"eval_data": None, "dev_rows": plan.dev_rows})  # fmt: skip
    found: list[Job] = []
    for number in range(count):
        found.append(Job(
            name=f"{candidate.name} trial {number}",
            work=partial(run_trial, recipe, place, number, count),
            folder=place,
            done=partial(trial_done, place, number, count),
            after=tuple(job.name for job in found[-1:]),
        ))  # fmt: skip
    return found


def _final_jobs(
    comparison: Comparison, plan: Plan, candidate: Candidate, folder: Path, trials: list[Job]
) -> list[Job]:
    """The runs of one candidate with every seed, after its search if there is one."""
    search = folder / TRIALS / candidate.path if trials else None
    found = []
    for seed in comparison.seeds:
        run = folder / RUNS / candidate.path / f"seed{seed}"
        recipe = _recipe(comparison, plan, candidate, run, seed)
        found.append(Job(
            name=f"{candidate.name} seed {seed}",
            work=partial(train_and_score, recipe, search, with_text=comparison.with_text),
            folder=run,
            done=partial(is_scored, run),
            after=tuple(job.name for job in trials[-1:]),
        ))  # fmt: skip
    return found


def _recipe(
    comparison: Comparison, plan: Plan, candidate: Candidate, run: Path, seed: int,
    training: dict[str, Any] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a run; all runs have the same number of steps and rows in a step."""
    shared = {
        "seed": seed,
        "learning_rate": candidate.default_rate,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "save_steps": max(LEAST_STEPS, -(-plan.steps // SAVES)),
        "save_total_limit": 1,
    }
    parts = candidate.parts
    if candidate.map_rate is not None:  # stated, so that it can follow the learning rate
        own = {**parts.get(MAP, {}), MAP_RATE: candidate.map_rate}
        parts = {**parts, MAP: own}
    return comparison.run_recipe(
        candidate.method, run, parts=parts, training={**shared, **(training or {})}
    )


def is_scored(run: Path) -> bool:
    """Whether a final run is trained and scored; the last thing kept of it is its forgetting."""
    result = run / RESULT_FILE
    scored = (run / PREDICTIONS_FILE).is_file() and result.is_file()
    return scored and b'"forgetting"' in result.read_bytes()


def train_and_score(
    recipe: Recipe, search: Path | None, *, with_text: bool, report: Callable[[str], None]
) -> None:
    """Train a final run and score it on the held-out rows, as far as that is not done.

    Args:
        recipe: of the run, with the method's default rate.
        search: the folder of the candidate's search, whose rate replaces it; None for no search.
        with_text: whether the predictions have the text of the rows.
        report: called with a line before each step.

    Raises:
        ValueError: if the search has found no rate.
        KeyboardInterrupt: if the training was interrupted and saved.
    """
    run = Path(recipe.output)
    if search is not None:
        recipe = at_rate(recipe, chosen_rate(search))
    if not (run / RESULT_FILE).is_file():
        report(f"training at learning rate {recipe.training['learning_rate']:.2g}")
        with only_reports():
            if train(recipe, resume=holds_run(run), quiet=True).interrupted:
                raise KeyboardInterrupt
    report("scoring")
    gc.collect()  # the Trainer refers to itself, so its model would stay beside the loaded one
    with only_reports():
        loaded = load_run(run, trust_remote_code=recipe.trust_remote_code)
        _score(loaded, with_text=with_text)
        forgetting(loaded)
    if not is_scored(run):  # the reason was logged
        raise OSError(f"the scores of {run} were not kept: run the command again")


def _score(run: Run, *, base: bool = False, with_text: bool = False) -> dict[str, dict[str, Any]]:
    """Score a run on the held-out rows; return the metrics by the name of the rows."""
    if has_tasks(run):
        return evaluate_tasks(run, base=base, with_text=with_text)
    return {str(run.recipe.eval_data): evaluate(run, base=base, with_text=with_text)}


def baselines_job(comparison: Comparison, plan: Plan, folder: Path) -> Job:
    """The job that scores the model as it is, and the commonest answer.

    The model is that of a finished run with its adapter switched off, so it has to come last.
    """
    runs = [
        folder / RUNS / candidate.path / f"seed{seed}"
        for candidate in plan.runnable
        for seed in comparison.seeds
    ]
    return Job(
        name=BASELINES,
        work=partial(score_baselines, comparison, runs, folder),
        folder=folder,
        done=(folder / BASELINES_FILE).is_file,
    )


def score_baselines(
    comparison: Comparison, runs: list[Path], folder: Path, *, report: Callable[[str], None]
) -> None:
    """Score the model as it is and the commonest answer, and write ``baselines.json``."""
    report("scoring the model as it is, and the commonest answer")
    with only_reports():
        found = {"as_it_is": _as_it_is(comparison, runs), "commonest": _commonest(comparison)}
    write_atomic(folder / BASELINES_FILE, json_text(found) + "\n")


def _as_it_is(comparison: Comparison, runs: list[Path]) -> dict[str, Any]:
    run = next((run for run in runs if is_scored(run) and (run / "adapter").is_dir()), None)
    if run is None:
        return {"reason": "no method that leaves the model itself unchanged was trained"}
    loaded = load_run(run, trust_remote_code=comparison.trust_remote_code)
    try:
        metrics = _score(loaded, base=True)
    except ValueError as error:  # its head is drawn at random
        return {"reason": str(error)}
    names = [f"{name} (base)" for name in metrics]
    scores = [line["score"] for line in read_predictions(run) if line["rows"] in names]
    return {"row_scores": scores, "metrics": read_result(run)["metrics"][names[0]]}


def _commonest(comparison: Comparison) -> dict[str, Any]:
    base = prepare(shared_recipe(comparison))
    data = read_data(comparison, base.kind)
    answer = commonest_answer(data.train)
    if answer is None:
        return {"reason": "plain text has no answers"}
    scores: list[float] = []
    for rows in data.held_out.values():
        # Predictions are in the order of the rows' numbers, and so must these be.
        order = sorted(range(len(rows.rows)), key=rows.number)
        inside = rows.part(order)
        scores += row_scores(rows.protocol, [answer] * len(order), inside.rows)
    return {"answer": answer, "row_scores": scores}


def commonest_answer(rows: Rows) -> Any:
    """The answer that most rows have; of scores their mean; None if rows have no answers."""
    if rows.form == "text":
        return None
    if rows.form == "score":
        return sum(float(row["score"]) for row in rows.rows) / len(rows.rows)
    if rows.form == "label":
        answers: list[Any] = [str(row["label"]) for row in rows.rows]
    elif rows.form == "choice":
        answers = [row["answer"] for row in rows.rows]
    else:
        answers = [answer_of(row) for row in rows.rows]
    return Counter(answers).most_common(1)[0][0]
