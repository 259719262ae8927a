"""The quickstart: trains LoRaDA-LA and a LoRA of no more parameters, and compares them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorada.compare.jobs import own_process
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.folder import differences, holds_run, same_recipe
from lorada.runs.recipe import RECIPE_FILE, Recipe, saved_recipe
from lorada.runs.result import RESULT_FILE, read_result
from lorada.training.load_recipe import load_recipe
from lorada.training.parameter_counts import count_parameters
from lorada.training.train import train

RECIPE = "quickstart"


def largest_lora(model: str, budget: int) -> list[str]:
    """Recipe overrides for the LoRA of the largest rank within ``budget`` parameters.

    Like the LoRA row of the paper it adapts q, k, v, up and down.
    """
    one = count_parameters("lora", model, ["lora.r=1"])["trainable"]
    rank = max(1, budget // one)
    return [f"lora.r={rank}", f"lora.lora_alpha={2 * rank}"]


def run_quickstart(
    output: Path, *, overwrite: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Train and score both methods on the bundled task, with runs in the folder ``output``.

    What is there of an earlier quickstart is gone on with. ``overwrite`` begins anew if it has
    finished, or was of another recipe.

    ``report`` is called with a line before each step.

    Raises:
        ValueError: for a run of another recipe, without ``overwrite``.
        KeyboardInterrupt: if the training was interrupted and saved.

    Returns:
        ``rows`` of the comparison, ``hardware`` and ``seed``.
    """
    ours = load_recipe(RECIPE, [], {"output": str(output / "lorada_la")})
    budget = count_parameters(ours.method, ours.model, [])["trainable"]
    lora = load_recipe(
        RECIPE,
        largest_lora(ours.model, budget),
        {"output": str(output / "lora"), "method": "lora"},
    )
    both = lora, ours
    anew = overwrite and (all(map(_finished, both)) or any(_other_recipe(each) for each in both))
    found = [own_process.call(train_and_score, each, anew, report=report) for each in both]
    return {
        "rows": [row for rows, _ in found for row in rows],
        "hardware": found[-1][1]["hardware"],
        "seed": found[-1][1]["seed"],
    }


def _finished(recipe: Recipe) -> bool:
    return (Path(recipe.output) / RESULT_FILE).is_file()


def _other_recipe(recipe: Recipe) -> bool:
    """Whether the folder of a run holds one of another recipe."""
    saved = Path(recipe.output) / RECIPE_FILE
    return saved.is_file() and any(differences(saved_recipe(saved), recipe))


def train_and_score(
    recipe: Recipe, overwrite: bool, *, report: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train one of the two methods, unless it has finished, and score it, in this process.

    Returns:
        Its rows of the comparison (LoRA's begin with the untrained model), and its result.

    Raises:
        KeyboardInterrupt: if the training was interrupted and saved.
    """
    folder = Path(recipe.output)
    if not overwrite and holds_run(folder):
        same_recipe(saved_recipe(folder / RECIPE_FILE), recipe)
    if overwrite or not _finished(recipe):
        report(f"Training {recipe.method} on {recipe.model}, {recipe.training['max_steps']} steps")
        resume = not overwrite and holds_run(folder)
        if train(recipe, resume=resume, overwrite=overwrite).interrupted:
            raise KeyboardInterrupt
    run, result, rows = load_run(folder), read_result(folder), []
    if recipe.method == "lora":
        report("Scoring the model as it was")
        before = evaluate(run, base=True)
        rows.append({"method": "before", "parameters": 0, "seconds": 0.0, **before})
    report(f"Scoring {recipe.method} on held-out rows")
    row = {
        "method": recipe.method,
        "parameters": result["parameters"]["trainable"],
        "seconds": result["wall_time_s"],
        "effect_size": result["effect_size"],
    }
    rows.append({**row, **evaluate(run)})
    return rows, result
