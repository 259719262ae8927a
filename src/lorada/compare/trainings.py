"""The jobs of a comparison: searches for learning rates, final runs, and scores without training.

Each may be called again after an interrupt or a kill: it does what is not done yet.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.compare.comparison_rows import Data
from lorada.compare.jobs.job import SCORING, Job, report
from lorada.compare.learning_rate import Space, search_rate, train_on
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import SEARCH_FILE, TRIALS, Candidate, ComparisonPlan
from lorada.data.commonest_answer import commonest_answer
from lorada.data.read_rows import share_of
from lorada.data.score_answers import metric_names_for, score_answers
from lorada.data.task_rows import Rows
from lorada.data.tokenize import written_calls
from lorada.inference.evaluate import evaluate, evaluate_tasks, has_tasks
from lorada.inference.load import Run, load_run
from lorada.inference.perplexity import forgetting
from lorada.runs.recipe import Recipe
from lorada.runs.result import PREDICTIONS_FILE, RESULT_FILE, read_predictions
from lorada.support.files import json_text, write_atomic

BASE_FILE = "as_it_is.json"  # in the run whose model was scored without its adapter
SAVES = 10  # how often a training saves a checkpoint, unless that is after fewer steps than:
LEAST_STEPS = 10


def comparison_jobs(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> list[Job]:
    """The searches of all candidates, those of most trainings first, then the final runs.

    A search is one job whose trials follow one another, so one that began late would run alone.
    """
    found: list[Job] = []
    for candidate in plan.runnable:
        before = None
        if comparison.is_searched(candidate.method):
            before = _search_job(comparison, plan, candidate, folder / TRIALS / candidate.path)
            found.append(before)
        search = before.folder if before else None
        for seed in comparison.seeds:
            run = folder / candidate.run(seed)
            space = _space(comparison, plan, candidate, run, seed)
            work = partial(train_and_score, space, search, with_text=comparison.with_text)
            found.append(Job(
                name=f"{candidate.name} seed {seed}",
                work=work,
                folder=run,
                done=partial(is_scored, run),
                after=before.name if before else "",
                reads=_reads(comparison, *([search / SEARCH_FILE] if search else [])),
            ))  # fmt: skip
    return sorted(found, key=lambda job: -job.trainings)


def trials_of(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate
) -> tuple[int, int]:
    """How many trials the search of a candidate takes, at most and usually."""
    if candidate.reason is not None or not comparison.is_searched(candidate.method):
        return 0, 0
    space = _space(comparison, plan, candidate, Path("-"), 0)
    return space.most, space.usual


def _search_job(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate, place: Path
) -> Job:
    """The search for a learning rate, with the first seed."""
    training = {"eval_strategy": "steps", "eval_steps": plan.steps}
    drawn: dict[str, Any] = {"dev_rows": plan.dev_rows}
    if share_of(comparison.held_out) is None:  # a share must not be learned
        drawn["eval_data"] = None
    seed = comparison.seeds[0]
    space = _space(comparison, plan, candidate, place, seed, training=training, **drawn)
    return Job(
        name=f"{candidate.name} search",
        work=partial(search_rate, space, place),
        folder=place,
        done=(place / SEARCH_FILE).is_file,
        reads=_reads(comparison),
        trainings=space.usual,
    )


def _space(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate, run: Path, seed: int, *,
    training: dict[str, Any] | None = None, **changes: Any,
) -> Space:  # fmt: skip
    """What a candidate's runs choose from; all have the same number of steps and rows in a step."""
    shared = {
        "seed": seed,
        "learning_rate": candidate.default_rate,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "save_steps": max(LEAST_STEPS, -(-plan.steps // SAVES)),
        "save_total_limit": 1,
    }
    recipes = [
        comparison.run_recipe(
            one.method, run, parts=one.parts, training={**shared, **(training or {})}, **changes
        )
        for one in candidate.choices or [candidate]
    ]
    start, given = candidate.map_rate, sorted(comparison.rates)
    if start is not None and given:  # in its ratio to the middle one
        start *= given[len(given) // 2] / (candidate.default_rate or 1.0)
    return Space(recipes, max(1, comparison.trials), comparison.rates, start)


def is_scored(run: Path) -> bool:
    """Whether a final run is trained and scored; the last thing kept of it is its forgetting."""
    result = run / RESULT_FILE
    scored = (run / PREDICTIONS_FILE).is_file() and result.is_file()
    return scored and b'"forgetting"' in result.read_bytes()


def train_and_score(space: Space, search: Path | None, *, with_text: bool) -> None:
    """Train a final run and score it on the held-out rows, as far as that is not done.

    ``search`` is the folder of the search that has chosen its recipe, if there was one.
    """
    recipe = space.chosen(search)
    run = Path(recipe.output)
    if not (run / RESULT_FILE).is_file():
        train_on(recipe, f"training at learning rate {recipe.training['learning_rate']:.2g}")
    report(SCORING)
    loaded = load_run(run, trust_remote_code=recipe.trust_remote_code)
    _score(loaded, recipe, with_text=with_text)
    forgetting(loaded)
    if not is_scored(run):  # the reason was logged
        raise OSError(f"the scores of {run} were not kept: run the command again")


def _score(
    run: Run, recipe: Recipe, *, base: bool = False, with_text: bool = False
) -> dict[str, dict[str, Any]]:
    """Score a run on the held-out rows of a recipe; the metrics by the name of the rows."""
    if has_tasks(run):
        return evaluate_tasks(run, recipe.data_dir, base=base, with_text=with_text)
    found = evaluate(run, base=base, with_text=with_text, metrics=_named(recipe.metric))
    return {str(run.recipe.eval_data): found}


def _named(metric: str | None) -> list[str]:
    return [] if metric is None else [metric]


def base_job(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> Job | None:
    """The job that scores the model as it is: a finished run with its adapter switched off.

    None if no such run is finished.
    """
    for candidate in plan.runnable:
        for seed in comparison.seeds:
            run = folder / candidate.run(seed)
            if is_scored(run) and (run / "adapter").is_dir():
                return Job(
                    name="the model as it is",
                    work=partial(score_base, run, comparison.shared_recipe),
                    folder=run,
                    done=(run / BASE_FILE).is_file,
                    reads=_reads(comparison),
                )
    return None


def score_base(run: Path, recipe: Recipe) -> None:
    """Score a run's model with its adapter switched off, and write ``as_it_is.json`` beside it.

    ``recipe`` has what all runs share: the metric, and whether code of a repository may run.
    """
    report(SCORING)
    loaded = load_run(run, trust_remote_code=recipe.trust_remote_code)
    if loaded.drawn:
        reason = (
            f"{loaded.recipe.model} has no {min(loaded.drawn)}, which is drawn anew at each "
            "load, so scores without training would be random"
        )
        write_atomic(run / BASE_FILE, json_text({"reason": reason}) + "\n")
        return
    metrics = _score(loaded, recipe, base=True)
    names = [f"{name} (base)" for name in metrics]
    of_base = [prediction for prediction in read_predictions(run) if prediction.rows in names]
    row_scores = columns([prediction.metrics_and_loss for prediction in of_base])
    write_atomic(run / BASE_FILE, json_text({"row_scores": row_scores}) + "\n")


def columns(lines: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """The values of each name that all lines have."""
    names = [name for name in lines[0] if all(name in line for line in lines)]
    return {name: [line[name] for line in lines] for name in names}


def score_commonest(
    data: Data, tokenizer: PreTrainedTokenizerBase, metric: str | None
) -> dict[str, Any]:
    """The commonest answer of the training rows, and its score on each held-out row.

    ``tokenizer`` is the model's, whose template writes calls of tools. ``metric`` is what answers
    are scored by besides the metrics that cost nothing, if anything is.
    """
    answer = commonest_answer(written_calls(data.train, tokenizer))
    if answer is None:
        return {"reason": "the training rows have no answers"}
    lines: list[dict[str, float]] = []
    for rows in answers_written(data, tokenizer).values():
        # Predictions are in the order of the rows' numbers, and so must these be.
        inside = rows.part(sorted(range(len(rows.rows)), key=rows.number))
        names = metric_names_for(inside, _named(metric))
        lines += score_answers(inside, [answer] * len(inside.rows), names).by_row
    return {"answer": answer, "row_scores": columns(lines)}


def answers_written(data: Data, tokenizer: PreTrainedTokenizerBase) -> dict[str, Rows]:
    """The held-out rows, in which calls of tools have the text that a model writes."""
    return {name: written_calls(rows, tokenizer) for name, rows in data.held_out.items()}


def _reads(comparison: Comparison, *more: Path) -> tuple[Path, ...]:
    """The files and folders that a job reads, besides its own."""
    return (*(path for _, path in comparison.shared_recipe.local_paths()), *more)
