"""``lorada compare --model a,b,c``, and the report of such a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lorada.cli.compare_request import CompareRequest, run_and_show
from lorada.cli.score_table import SHARED, ScoreLine, show_scores
from lorada.cli.shared import console, importing, print_json, say
from lorada.support.plain_yaml import read_yaml


def saved_models(folder: Path) -> dict[str, str]:
    """Model → its folder, of a comparison of several models; empty for any other folder."""
    from lorada.compare.model_names import MODELS_FILE

    path = folder / MODELS_FILE
    if not path.is_file():
        return {}
    stored = read_yaml(path.read_text(encoding="utf-8"), str(path))
    models = stored.get("models") if isinstance(stored, dict) else None
    if not isinstance(models, dict):
        raise ValueError(f"{path} is damaged: put it back, or start again with --overwrite")
    return {str(model): str(name) for model, name in models.items()}


def models_of(model: str | None, folder: Path, *, resume: bool) -> dict[str, str]:
    """Model → its folder, where a comparison has several models; empty for one model."""
    from lorada.compare.model_names import folders_of_models, models_in
    from lorada.compare.spec import SPEC_FILE

    models = models_in(model or "")
    named = folders_of_models(models) if len(models) > 1 else {}
    saved = saved_models(folder)
    says_models = model is not None or not resume
    if saved and says_models and named != saved:
        raise ValueError(
            f"{folder} holds a comparison of {', '.join(saved)}, not of {model}: choose another "
            "--output"
        )
    if named and (folder / SPEC_FILE).is_file():
        raise ValueError(f"{folder} holds a comparison of one model: choose another --output")
    return saved or named


def compare_each(request: CompareRequest, models: Mapping[str, str]) -> Any:
    """Compare on each model, and print the joined report.

    Args:
        request: the options of the command.
        models: model → its folder.

    Returns:
        What the joined report shows; None while jobs are left.

    Raises:
        ValueError: for a dry run, which is of one model.
        typer.Exit: with code 2 if a job has failed, after all that is printed.
    """
    from lorada.compare.spec import SPEC_FILE

    if request.dry_run:
        raise ValueError("--dry-run is for one model at a time: name one of them with --model")
    comparisons = {}
    not_begun = []
    for model, name in models.items():
        options = {**request.recipe_options, "model": model}
        of_model = replace(request, folder=request.folder / name, recipe_options=options)
        if of_model.is_new or (of_model.folder / SPEC_FILE).is_file():
            comparisons[model] = of_model.comparison()
        else:
            not_begun.append(model)
    if not comparisons:
        raise ValueError(
            f"{request.folder} was stopped before it began: give the whole command with --overwrite"
        )
    # A command that was stopped as it began has settings of some models only; all share them.
    begun = next(iter(comparisons.values()))
    for model in not_begun:
        recipe = {**begun.recipe, "model": model}
        comparisons[model] = begun.model_copy(update={"recipe": recipe})
    with importing():
        from lorada.compare.several_models import compare_models

    in_order = {model: comparisons[model] for model in models}
    return run_and_show(request, partial(compare_models, in_order), show_joined)


def refuse_of_one_model(folder: Path, models: Mapping[str, str], options: Sequence[object]) -> None:
    """Refuse options of ``lorada report`` that are for the folder of one model."""
    if any(option is not None for option in options):
        first = folder / next(iter(models.values()))
        raise ValueError(
            f"{folder} has several models: --metric, --unit and --with-text are for the folder of "
            f"one, such as {first}"
        )


def report_on_models(
    folder: Path, models: Mapping[str, str], margin: float | None, *, as_json: bool
) -> None:
    """Write the joined report of several models again, and print it."""
    from lorada.compare.report.write_joined_report import write_joined_report

    joined, paths = write_joined_report(folder, models, margin)
    show_joined(joined, paths, as_json=as_json)


def show_joined(joined: Any, reports: list[Path], *, as_json: bool) -> None:
    """Print the verdict over models, its table and the files of the report."""
    if as_json:
        print_json(joined.plain())
        return
    decision = joined.decision
    console.print(joined.verdict)
    lines = []
    for one in joined.lines:
        low, high = decision.intervals[one.name]
        lines.append(
            ScoreLine(
                one.name, decision.scores[one.name], low, high,
                decision.letters.get(one.name, ""), decision.expected_loss.get(one.name),
                one.line.result.trainable, decision.mark(one.name),
            )
        )  # fmt: skip
    show_scores("score", decision.score_format, lines)
    if any(decision.letters.values()):
        console.print(f"• {SHARED}.")
    for one in joined.unscored:
        console.print(f"• {one.name}: {one.line.result.reason}")
    for sentence in joined.sentences:
        console.print(f"• {sentence}")
    say(", ".join(map(str, reports)))
