"""The metadata of a model card: base model, licence, and scores in the form that the hub reads."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from yaml import YAMLError

from lorada.runs.recipe import Recipe
from lorada.tasks import TASKS

CARD_FILE = "README.md"
# PEFT's task type → the hub's name of the task.
HUB_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
}
LICENCE = ("license", "license_name", "license_link")
BASE = " (base)"  # the end of the name of scores of the base alone


def front_matter(
    recipe: Recipe, library: str, task_type: str, title: str, result: dict[str, Any] | None
) -> str:
    """The YAML at the top of a model card.

    Args:
        recipe: the recipe of the run, whose ``model`` is the base.
        library: the library that loads the folder, ``peft`` or ``transformers``.
        task_type: PEFT's name for the model's task, such as ``CAUSAL_LM``.
        title: the name of the model beside its scores.
        result: the ``result.json`` of the run; None before there is one.
    """
    task = HUB_TASKS[task_type]
    scores = _eval_results(task, result) if result else []
    data = ModelCardData(
        library_name=library,
        base_model=recipe.model,
        pipeline_tag=task,
        tags=["lorada", recipe.method],
        model_name=title if scores else None,
        eval_results=scores or None,
        **licence_of(recipe.model),
    )
    return str(data.to_yaml())


def licence_of(model: str) -> dict[str, Any]:
    """What the card of a model says of its licence; empty if it says nothing or there is none.

    The card is that in the model's folder, or the one that the hub's client has on this machine.
    """
    path: Any = Path(model, CARD_FILE)
    try:
        if not Path(model).is_dir():
            path = try_to_load_from_cache(model, CARD_FILE)
        said = metadata_load(path) if isinstance(path, str | Path) and Path(path).is_file() else {}
    except (HFValidationError, YAMLError, ValueError):  # no id of the hub; a card that is damaged
        return {}
    found = {key: (said or {}).get(key) for key in LICENCE}
    return {key: value for key, value in found.items() if value and isinstance(value, str | list)}


def licence_note(model: str) -> str:
    """A sentence on the licence of what was made from ``model``."""
    said = licence_of(model)
    if not said:
        return (
            f"The licence of {model} was not found on this machine: add it to this card before "
            "you share the folder."
        )
    name = said.get("license_name") or said.get("license")
    shown = ", ".join(name) if isinstance(name, list) else name
    return f"Licence of the base, carried over: {shown}."


def _eval_results(task: str, result: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            task_name=result.get("task"),
            **_data_set(name),
            metric_type=metric,
            metric_value=value,
            metric_args={"n": scores.get("n"), "seed": result.get("seed")},
        )
        for name, scores in result["metrics"].items()
        if not name.endswith(BASE)
        for metric, value in scores.items()
        if metric != "n" and isinstance(value, int | float)
    ]


def _data_set(name: str) -> dict[str, Any]:
    """The hub's fields of the rows that scores go by: those of a task, or a file of the user."""
    for task, entry in TASKS.items():
        for suffix, source in entry.test.items():
            if name == "_".join(filter(None, (task, suffix))):
                on_hub = source.hub and not source.hub.startswith("https://")
                return {
                    "dataset_type": source.hub if on_hub else task,
                    "dataset_name": name,
                    "dataset_config": source.config,
                    "dataset_split": source.split,
                }
    short = name if name.startswith("lm_eval/") else Path(name).name
    return {"dataset_type": short, "dataset_name": short}
