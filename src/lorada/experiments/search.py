"""``lorada search``: runs AutoPEFT's search. Each trial is a normal run, scored on held-out rows.

The folder of a search holds ``search.yaml`` (the recipe that all trials share), ``search.json``
(the trials so far) and the runs ``trial-000``, ``trial-001`` …
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from lorada.experiments.queue.engine import Workers
from lorada.experiments.queue.job import Job, JobEngine
from lorada.experiments.queue.queue import run_queue
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.methods.autopeft import search as autopeft_search
from lorada.methods.autopeft.search_space import Space, Trial, pareto
from lorada.methods.autopeft.settings import LAYERS, SIZES, Configuration
from lorada.methods.lookup import method_named
from lorada.methods.model_settings import choose_settings
from lorada.runs.folder.folder import clear, holds_run, same_recipe
from lorada.runs.folder.lock import locked
from lorada.runs.folder.result import RESULT_FILE, read_result
from lorada.runs.models.count import count_parameters
from lorada.runs.models.loading import load_config
from lorada.runs.plain_yaml import write_yaml
from lorada.runs.recipe import RECIPE_FILE, Recipe, load_recipe, saved_recipe
from lorada.runs.training.callbacks import DivergedError
from lorada.runs.training.train import train
from lorada.support.files import write_atomic

logger = logging.getLogger(__name__)

METHOD = "autopeft"
SEARCH_RECIPE, STATE_FILE = "search.yaml", "search.json"


def search_recipe(pairs: list[str], options: dict[str, Any], *, resume: bool) -> Recipe:
    """The recipe of a search; with ``resume`` the one saved in its folder.

    Raises:
        ValueError: as ``load_recipe``, and for a method without a search.
    """
    _refuse_other(options["method"] or METHOD)
    saved = Path(str(options["output"])) / SEARCH_RECIPE
    if resume and not saved.is_file():
        raise ValueError(f"{saved.parent} holds no search to resume: give the --output of one")
    known = str(saved) if resume else None
    options = {**options, "method": options["method"] or (None if resume else METHOD)}
    recipe = load_recipe(known, pairs, options)
    _refuse_other(recipe.method)
    for part, name in SIZES.items():
        for chosen in recipe.parts.get(part, {}).keys() & {name, LAYERS}:
            raise ValueError(f"{part}.{chosen} is what the search chooses: leave it out")
    return recipe


def _refuse_other(method: str) -> None:
    if method != METHOD:
        raise ValueError(f"lorada search is for --method {METHOD}, not {method}")


def search(
    recipe: Recipe,
    trials: int,
    sampler: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
    engine: JobEngine | None = None,
) -> dict[str, Any]:
    """Search the configurations of AutoPEFT for a model and its rows.

    Args:
        recipe: shared by all trials; the sampler takes its seed too.
        trials: how many configurations to try in total, earlier ones included.
        sampler: ``random`` or ``botorch``.
        resume: continue the search in the output folder.
        overwrite: delete the search in the output folder first.
        report: called with a line before and after each trial.
        engine: where the trials run, one after another; processes of this machine if not given.

    Returns:
        ``sampler``, ``seed``, ``trials`` and ``pareto``. The last two are lists of configurations,
        each with ``accuracy`` and ``parameters`` in percent and the folder of its ``run``;
        ``pareto`` starts with the smallest.

    Raises:
        ValueError: for an impossible number of trials, a folder that already holds a search, or
            a trial that failed.
        KeyboardInterrupt: if the training of a trial was interrupted and saved.
    """
    folder = Path(recipe.output)
    autopeft_search.sampler_named(sampler)
    space = space_of(recipe)
    with locked(folder):
        _begin(recipe, trials, space, resume=resume, overwrite=overwrite)
        try:
            outcomes = run_queue(
                _jobs(recipe, trials, space, sampler), engine or Workers(), report=report
            )
        except KeyboardInterrupt:
            more = f"--trials {trials} --sampler {sampler} --output {quote(str(folder))}"
            report(f"stopped and saved; next: lorada search --resume {more}")
            raise
    for name, outcome in outcomes.items():
        if outcome.error:
            raise ValueError(f"{name}: {outcome.error}")
    seed = _seed(recipe)
    done = autopeft_search.recorded(space, sampler, folder / STATE_FILE, seed)[:trials]
    return {
        "sampler": sampler,
        "seed": seed,
        "trials": [_row(folder, done, trial) for trial in done],
        "pareto": [_row(folder, done, trial) for trial in pareto(done)],
    }


def _jobs(recipe: Recipe, trials: int, space: Space, sampler: str) -> list[Job]:
    """The trials as jobs of the queue, each after the one before it."""
    names = [f"trial {number + 1}" for number in range(trials)]
    return [
        Job(
            name,
            partial(carry_out, recipe, number, space, sampler),
            Path(recipe.output),
            partial(is_recorded, recipe, number, space, sampler),
            after=(names[number - 1],) if number else (),
            reads=tuple(recipe.local_paths().values()),
        )
        for number, name in enumerate(names)
    ]


def _seed(recipe: Recipe) -> int:
    return int(recipe.training.get("seed", 42))


def is_recorded(recipe: Recipe, number: int, space: Space, sampler: str) -> bool:
    """Whether the result of a trial is in the folder of its search.

    Raises:
        ValueError: if that folder has the state of another search.
    """
    state = Path(recipe.output) / STATE_FILE
    return len(autopeft_search.recorded(space, sampler, state, _seed(recipe))) > number


def carry_out(
    recipe: Recipe, number: int, space: Space, sampler: str, *, report: Callable[[str], None]
) -> None:
    """Choose, train and score one trial in this process, and record its result.

    The trials before it must be recorded.

    Raises:
        KeyboardInterrupt: if the training was interrupted and saved.
    """

    def trial(at: int, chosen: Configuration) -> tuple[float, float]:
        report(configuration_text(chosen))
        return train_and_score(recipe, at, chosen)

    state = Path(recipe.output) / STATE_FILE
    autopeft_search.search(trial, space, number + 1, sampler, state, _seed(recipe))


def space_of(recipe: Recipe) -> Space:
    """The search space of a recipe's model."""
    config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    column = choose_settings(method_named(METHOD), config).parts
    depth = max(config.num_hidden_layers, getattr(config, "decoder_layers", 0))
    return Space(config.hidden_size, depth, tuple(part for part in SIZES if part in column))


def configuration_text(chosen: Configuration) -> str:
    """A configuration as text for the progress line."""
    layers = ", ".join(map(str, chosen.layers))
    sizes = {name: getattr(chosen, name) for name in ("serial", "parallel", "prefix")}
    return ", ".join(f"{k} {v or 'absent'}" for k, v in sizes.items()) + f"; layers {layers}"


def _begin(recipe: Recipe, trials: int, space: Space, *, resume: bool, overwrite: bool) -> None:
    """Prepare the folder of a search, or refuse it before anything is written."""
    folder = Path(recipe.output)
    if not 1 <= trials <= space.size():
        raise ValueError(f"trials={trials} must lie between 1 and {space.size()}, all there are")
    if holds_run(folder):
        raise ValueError(f"{folder} holds a run: choose another --output")
    saved = folder / SEARCH_RECIPE
    if resume:
        same_recipe(saved_recipe(saved), recipe)
        return
    if saved.is_file() and not overwrite:
        raise ValueError(
            f"{folder} already holds a search: use --resume, --overwrite or another --output"
        )
    (folder / STATE_FILE).unlink(missing_ok=True)
    for run in folder.glob("trial-*") if overwrite else []:
        if holds_run(run):
            clear(run)
            if not any(run.iterdir()):
                run.rmdir()
    write_atomic(saved, write_yaml(recipe.model_dump()))


def _run_of(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:03d}"


def train_and_score(recipe: Recipe, number: int, chosen: Configuration) -> tuple[float, float]:
    """Train and score one configuration in this process; an interrupted run continues.

    Returns:
        Accuracy and parameters, in percent.

    Raises:
        KeyboardInterrupt: if the training was interrupted and saved.
    """
    run = _run_of(Path(recipe.output), number)
    parts = {
        part: {**recipe.parts.get(part, {}), **own} for part, own in chosen.overrides().items()
    }
    mine = recipe.model_copy(update={"output": str(run), "parts": parts})
    try:
        if not (run / RESULT_FILE).is_file():
            if train(mine, resume=holds_run(run)).interrupted:
                raise KeyboardInterrupt
        else:
            same_recipe(saved_recipe(run / RECIPE_FILE), mine)
    except DivergedError as error:
        logger.warning("%s: %s; counted as 0 %% right", run, error)
        pairs = [
            f"{part}.{k}={json.dumps(v)}" for part, own in parts.items() for k, v in own.items()
        ]
        return 0.0, float(count_parameters(METHOD, recipe.model, pairs)["percent"])
    metrics = evaluate(load_run(run, trust_remote_code=recipe.trust_remote_code))
    quality = metrics["accuracy"] if "accuracy" in metrics else metrics["exact_match"]
    return float(quality), float(read_result(run)["parameters"]["percent"])


def _row(folder: Path, done: list[Trial], trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "run": str(_run_of(folder, done.index(trial)))}
