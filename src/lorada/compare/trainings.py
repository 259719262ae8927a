"""The jobs of a comparison: searches for learning rates, final runs, and scores without training.

Each may be called again after an interrupt or a kill: it does what is not done yet.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lorada.compare.baselines.row_scores import columns, scores_of
from lorada.compare.comparison_rows import Data
from lorada.compare.curve import curve_run
from lorada.compare.jobs.job import SCORING, Job, report
from lorada.compare.kept import Keep, losses_of, paths_read
from lorada.compare.learning_rate import Space, search_rate, train_on
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import (
    SEARCH_FILE,
    TRIALS,
    Candidate,
    ComparisonPlan,
    KeptPlan,
    Untrained,
    is_scored,
)
from lorada.data.rows.held_out_share import share_of
from lorada.data.rows.rows import Rows
from lorada.data.scoring.commonest_answer import commonest_answer
from lorada.data.tokenize import written_calls
from lorada.inference.evaluate import BASE, evaluate, evaluate_tasks, has_tasks
from lorada.inference.load import Run, load_run
from lorada.runs.folder import BASE_FILE
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, read_predictions
from lorada.support.files import json_text, write_atomic

SAVES = 10  # how often a training saves a checkpoint
LEAST_STEPS = 10  # between two checkpoints, in short trainings


def comparison_jobs(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> list[Job]:
    """The searches of all candidates, those of most trainings first, then the final runs.

    A search is one job whose trials follow one another, so one that began late would run alone.
    """
    jobs: list[Job] = []
    for candidate in plan.runnable:
        search = None
        if comparison.is_searched(candidate.method):
            search = _search_job(comparison, plan, candidate, folder / TRIALS / candidate.path)
            jobs.append(search)
        for seed in comparison.seeds:
            run = folder / candidate.run(seed)
            jobs.append(_run_job(comparison, plan, candidate, run, seed, search))
    return sorted(jobs, key=lambda job: job.trainings, reverse=True)  # equal ones stay in order


class TrialCounts(NamedTuple):
    """How many trials a search takes."""

    most: int
    usual: int


def trials_of(comparison: Comparison, plan: ComparisonPlan, candidate: Candidate) -> TrialCounts:
    """How many trials the search of a candidate takes, at most and usually."""
    if candidate.reason is not None or not comparison.is_searched(candidate.method):
        return TrialCounts(0, 0)
    space = _space(comparison, plan, candidate, Path("-"), 0)
    return TrialCounts(space.most_trials, space.usual_trials)


def _search_job(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate, folder: Path
) -> Job:
    """The search for a learning rate, with the first seed."""
    # ``dev_rows`` are training rows that are set aside, whose loss chooses the rate.
    row_fields: dict[str, Any] = {"dev_rows": plan.dev_rows}
    # A search does not look at held-out rows, so it has none (None), or their scores would choose.
    # A share of the training rows stays named all the same, because its rows must not be learned
    # either.
    if share_of(comparison.held_out) is None:
        row_fields["eval_data"] = None
    search_space = _space(
        comparison,
        plan,
        candidate,
        folder,
        comparison.seeds[0],
        # The loss is measured once, after the last step.
        training={"eval_strategy": "steps", "eval_steps": plan.steps},
        **row_fields,
    )
    return Job(
        name=f"{candidate.name} search",
        work=partial(search_rate, search_space, folder),
        folder=folder,
        done=(folder / SEARCH_FILE).is_file,
        reads=paths_read(comparison),
        trainings=search_space.usual_trials,
    )


def _run_job(
    comparison: Comparison,
    plan: ComparisonPlan,
    candidate: Candidate,
    run: Path,
    seed: int,
    search: Job | None,
) -> Job:
    """A final run of a candidate; ``search`` chooses its recipe, if there is anything to choose."""
    space = _space(comparison, plan, candidate, run, seed)
    search_folder = None if search is None else search.folder
    reads = paths_read(comparison)
    if search_folder is not None:
        reads += (search_folder / SEARCH_FILE,)
    return Job(
        name=f"{candidate.name} seed {seed}",
        work=partial(
            train_and_score,
            space,
            search_folder,
            Keep.of(comparison, plan),
            with_text=comparison.with_text is True,
        ),
        folder=run,
        done=partial(is_scored, run),
        after="" if search is None else search.name,
        reads=reads,
    )


def curve_job(
    comparison: Comparison,
    plan: ComparisonPlan,
    candidate: Candidate,
    folder: Path,
    seed: int,
    halvings: int,
) -> Job:
    """A run of a candidate on half of the training rows, halved so many times.

    Its rate and its steps are those of the candidate's final runs, so that only the rows differ.
    What it keeps of other rows is not measured.
    """
    run = folder / curve_run(candidate, halvings, seed)
    space = _space(comparison, plan, candidate, run, seed, train_halvings=halvings)
    search_folder = None
    if comparison.is_searched(candidate.method):
        search_folder = folder / TRIALS / candidate.path
    return Job(
        name=f"{candidate.name} seed {seed} on 1/{2**halvings} of the training rows",
        work=partial(
            train_and_score,
            space,
            search_folder,
            Keep(None, None, KeptPlan(reason="it is measured on all training rows alone")),
            with_text=comparison.with_text is True,
        ),
        folder=run,
        done=partial(is_scored, run),
        reads=paths_read(comparison),
    )


def _space(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate, run: Path, seed: int, *,
    training: dict[str, Any] | None = None, **changes: Any,
) -> Space:  # fmt: skip
    """What a candidate's runs choose from; all have the same number of steps and rows in a step."""
    shared_training = {
        "seed": seed,
        "learning_rate": candidate.default_rate,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "save_steps": max(LEAST_STEPS, math.ceil(plan.steps / SAVES)),
        "save_total_limit": 1,
        **(training or {}),
    }
    recipes = [
        comparison.run_recipe(
            choice.method, run, parts=choice.parts, training=shared_training, **changes
        )
        for choice in candidate.choices or [candidate]
    ]
    map_rate = candidate.map_rate
    rates = sorted(comparison.rates)
    if map_rate is not None and rates:
        # The map's rate keeps its ratio to the learning rate, of those given to the middle one.
        middle_rate = rates[len(rates) // 2]
        map_rate *= middle_rate / (candidate.default_rate or 1.0)
    return Space(recipes, max(1, comparison.trials), comparison.rates, map_rate)


def train_and_score(
    space: Space, search_folder: Path | None, keep: Keep, *, with_text: bool
) -> None:
    """Train a final run and score it on the held-out rows, as far as that is not done.

    Then it is scored on the rows that it should still do (``keep``). The search in
    ``search_folder`` has chosen its recipe, if there was one.

    Raises:
        OSError: if its scores could not be written.
    """
    recipe = space.chosen_recipe(search_folder)
    run = Path(recipe.output)
    if not (run / RESULT_FILE).is_file():
        train_on(recipe, f"training at learning rate {recipe.training['learning_rate']:.2g}")
    report(SCORING)
    loaded = load_run(run, trust_remote_code=recipe.trust_remote_code)
    _score(loaded, recipe, with_text=with_text)
    losses_of(loaded, keep).save(run)  # last: where these are, the scores are too
    if not is_scored(run):  # the reason was logged
        raise OSError(f"the scores of {run} were not kept: run the command again")


def _score(run: Run, recipe: Recipe, *, base: bool = False, with_text: bool = False) -> list[str]:
    """Score a run on the held-out rows of a recipe, into its folder; return the names of the rows.

    With ``base`` it is the model with the adapter switched off.
    """
    if has_tasks(run):
        return list(evaluate_tasks(run, recipe.data_dir, base=base, with_text=with_text))
    evaluate(run, base=base, with_text=with_text, metrics=_as_list(recipe.metric))
    return [str(run.recipe.eval_data)]


def _as_list(metric: str | None) -> list[str]:
    return [] if metric is None else [metric]


def base_job(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> Job | None:
    """The job that scores the model as it is: a finished run with its adapter switched off.

    None if no such run is finished.
    """
    for candidate in plan.runnable:
        for seed in comparison.seeds:
            run = folder / candidate.run(seed)
            has_adapter = (run / "adapter").is_dir()  # others have changed the model itself
            if is_scored(run) and has_adapter:
                return Job(
                    name="the model as it is",
                    work=partial(score_base, run, comparison.shared_recipe),
                    folder=run,
                    done=(run / BASE_FILE).is_file,
                    reads=paths_read(comparison),
                )
    return None


def score_base(run: Path, recipe: Recipe) -> None:
    """Score a run's model with its adapter switched off, and write ``as_it_is.json`` beside it.

    ``recipe`` has what all runs share: the metric, and whether code of a repository may run.
    """
    report(SCORING)
    loaded = load_run(run, trust_remote_code=recipe.trust_remote_code)
    if loaded.drawn:  # weights that the model's own files do not have, as those of a new head
        reason = (
            f"{loaded.recipe.model} has no {min(loaded.drawn)}, which is drawn anew at each "
            "load, so scores without training would be random"
        )
        scores = Untrained(reason=reason)
    else:
        names = [f"{name}{BASE}" for name in _score(loaded, recipe, base=True)]
        row_metrics = []
        for prediction in read_predictions(run):
            if prediction.rows in names:
                row_metrics.append(prediction.metrics_and_loss)
        scores = Untrained(columns(row_metrics))
    write_atomic(run / BASE_FILE, json_text(scores.stored()) + "\n")


def score_commonest(
    data: Data, tokenizer: PreTrainedTokenizerBase, metric: str | None
) -> Untrained:
    """The commonest answer of the training rows, and its score on each held-out row.

    ``tokenizer`` is the model's, whose template writes calls of tools. ``metric`` is what answers
    are scored by besides the metrics that cost nothing, if anything is.
    """
    answer = commonest_answer(written_calls(data.train, tokenizer))
    if answer is None:
        return Untrained(reason="the training rows have no answers")
    held_out = list(answers_written(data, tokenizer).values())
    row_scores = scores_of(held_out, lambda rows: [answer] * len(rows.rows), metric)
    return Untrained(row_scores, answer=answer)


def answers_written(data: Data, tokenizer: PreTrainedTokenizerBase) -> dict[str, Rows]:
    """The held-out rows, in which calls of tools have the text that a model writes."""
    return {name: written_calls(rows, tokenizer) for name, rows in data.held_out.items()}
