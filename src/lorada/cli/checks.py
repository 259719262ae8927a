"""Checks that a command makes before it loads torch, which takes seconds.

So mistakes in names and folders, and files that are not there, are reported at once. The code that
runs the command checks them again, together with what needs torch; what stands in a file of rows
is checked when it is read.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorada.compare.rows import has_own_rows
from lorada.compare.spec import (
    FIXED,
    comparison_of,
    refuse_taken_by_other,
    saved_comparison,
)
from lorada.data.chosen_metric import LATER, refuse_metric, refuse_unnamed
from lorada.data.held_out import share_of
from lorada.data.row_files import there
from lorada.data.sources import data_folder
from lorada.data.task_rows import JSONL, Rows, rows_to_answer
from lorada.runs.folder import (
    refuse_no_adapter,
    refuse_no_run,
    refuse_taken,
    refuse_target,
)
from lorada.runs.lock import refuse_file
from lorada.runs.recipe import RECIPE_FILE, REMOTE, Recipe
from lorada.runs.result import read_result, refuse_no_text
from lorada.support.errors import missing_package, refuse_empty, unknown_name
from lorada.support.files import refuse_there
from lorada.support.metric_names import LOSS
from lorada.support.row_sources import CODE, HEADED
from lorada.training.load_recipe import outline
from lorada.training.models.names import check_name
from lorada.training.same_base import adapter_names, refuse_different_bases

DTYPES = ("float32", "bfloat16", "float16")  # that an export may be written in
FORMATS = "transformers", "onnx"  # of an export
ONNX_PACKAGES = "onnx", "onnxscript", "onnxruntime"  # of the extra
SHARD_SIZE = re.compile(r"[1-9]\d*(\.\d+)?(KB|MB|GB|TB)")


def check_training(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Check the model's name, the output folder and the files of rows of a training.

    Raises:
        ValueError: for an unknown model, no rows, or an output folder that holds a run.
        FileNotFoundError: for rows that are not there.
    """
    refuse_file(Path(recipe.output))
    refuse_taken(recipe, resume=resume, overwrite=overwrite)
    check_name(recipe.model)
    _check_rows(recipe, recipe.data)
    if recipe.eval_data is not None and share_of(recipe.eval_data) is None:
        there(recipe.eval_data)


def refuse_resumed(metric: str | None, run: Path | None, overrides: Sequence[str]) -> None:
    """Refuse a function of a file that only the recipe of a ``run`` to resume names.

    Raises:
        ValueError: with what to add to the command.
    """
    if run is not None and not any(pair.startswith("metric=") for pair in overrides):
        refuse_unnamed(metric, run, "metric=")


def _check_rows(recipe: Recipe, data: str | None, data_dir: str | None = None) -> None:
    """Check that the rows of a user are there, or the folder of those of a benchmark."""
    if data is None and recipe.task != JSONL:
        data_folder(data_dir or recipe.data_dir)
    else:
        there(data)


def check_run(folder: Path) -> Recipe:
    """Check that a folder holds a finished run, and return the outline of its recipe.

    Raises:
        ValueError: if it does not.
    """
    refuse_no_run(folder)
    read_result(folder)
    # Whether remote code runs is said in the command, and is asked when the run is loaded.
    recipe = outline(str(folder / RECIPE_FILE), [], {REMOTE: False})
    check_name(recipe.model)
    return recipe


def check_export(
    folder: Path,
    target: Path,
    *,
    adapter_only: bool,
    dtype: str | None,
    shard_size: str | None,
    form: str = "transformers",
) -> None:
    """Check a finished run, the folder to export it to, and how it should be written.

    Raises:
        ValueError: as ``check_run`` and ``refuse_target``, for a dtype or size that is none, for
            either where no weights of a base are written, if there is no adapter to write alone,
            or for an unknown format or an option that it does not have.
        ImportError: if a package of the format's extra is missing.
    """
    check_run(folder)
    refuse_target(folder, target)
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    weights = {"--dtype": dtype, "--shard-size": shard_size}
    taken: Mapping[str, str | bool | None] = {}
    why = ""
    if adapter_only:
        taken, why = weights, "--adapter-only, which writes no weights of the base"
    if form == "onnx":
        taken = {"--adapter-only": adapter_only, **weights}
        why = f"--format {form}, which writes the whole model in float32"
    for option, given in taken.items():
        if given:
            raise ValueError(f"{option} is not for {why}: leave one out")
    if adapter_only:
        refuse_no_adapter(folder)
    for package in ONNX_PACKAGES if form == "onnx" else ():
        if find_spec(package) is None:
            raise missing_package(package, "onnx")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if shard_size is not None and not SHARD_SIZE.fullmatch(shard_size):
        raise ValueError(f"--shard-size {shard_size} is not a size such as 500MB or 2GB")


def check_scored(
    folder: Path, data: str | None, data_dir: str | None, metric: str | None = None
) -> Recipe:
    """Check a finished run and that the rows to score it on are there; return its recipe's outline.

    ``data`` is a file of rows, None for those of its recipe; ``metric`` is what is asked for.

    Raises:
        ValueError: as ``check_run``, for no rows, a metric for a benchmark, or code that is not
            named in the command.
        FileNotFoundError: for rows that are not there.
    """
    recipe = check_run(folder)
    own = recipe.data if share_of(recipe.eval_data) is not None else recipe.eval_data
    _check_rows(recipe, data or own, data_dir)
    if metric is None:
        refuse_unnamed(recipe.metric, folder)
    elif data is None and recipe.task != JSONL:
        raise ValueError(
            f"--metric {metric} is for rows of your own, and task={recipe.task} has its own: leave "
            "it out"
        )
    return recipe


def check_predicted(
    folder: Path,
    texts: Sequence[str],
    data: str | None,
    output: Path | None,
    *,
    overwrite: bool,
) -> tuple[Recipe, Rows | None]:
    """Check a finished run, what it is to answer, and the file for the answers.

    Returns:
        The outline of the run's recipe, and the texts as rows; None for rows of a file.

    Raises:
        ValueError: as ``check_run``, for texts beside a file, texts that do not fit the run, or a
            file that is there or is neither JSON Lines nor CSV.
        FileNotFoundError: for rows that are not there.
    """
    recipe, result = check_run(folder), read_result(folder)
    if texts and data is not None:
        raise ValueError(f"--text {texts[0]!r} and --data {data} exclude each other: leave one out")
    if output is not None:
        if output.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output} is neither a .jsonl nor a .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    if data is not None:
        there(data)
        return recipe, None
    rows = [{"text" if result["form"] in HEADED else "prompt": text} for text in texts]
    learned = result["form"], tuple(result["labels"])
    return recipe, rows_to_answer(rows, "--text", *learned, pairs=result.get("pairs", False))


def check_writers(folders: Sequence[Path]) -> Recipe:
    """Check that finished runs on one base write text; return the outline of the first's recipe.

    Raises:
        ValueError: as ``check_run``, for a run that writes no text, one that is given twice, or
            runs on different bases.
    """
    recipes = [check_run(folder) for folder in folders]
    for folder in folders:
        result = read_result(folder)
        refuse_no_text(folder, result["form"], result["labels"])
    adapter_names(folders)
    refuse_different_bases(folders)
    return recipes[0]


def check_served(folders: Sequence[Path]) -> tuple[Recipe, bool]:
    """Check finished runs to be served: all write text, on one base, or none does.

    Returns:
        The outline of the first one's recipe, and whether they label, score or choose.

    Raises:
        ValueError: as ``check_run``, for a run that is given twice, runs of both kinds, or writers
            on different bases.
    """
    recipes = [check_run(folder) for folder in folders]
    adapter_names(folders)
    asked = [read_result(folder)["form"] in (*HEADED, "choice") for folder in folders]
    if len(set(asked)) > 1:
        one, other = folders[asked.index(True)], folders[asked.index(False)]
        raise ValueError(
            f"{one} labels, scores or chooses and {other} writes text: serve each alone"
        )
    if not asked[0]:
        refuse_different_bases(folders)
    return recipes[0], asked[0]


def check_comparison(
    folder: Path,
    overrides: list[str],
    options: dict[str, Any],
    asked: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Check the names and numbers of a comparison, its folder, and that its rows are there.

    Args:
        folder: of the comparison.
        overrides: ``key=value``, settings that all runs share.
        options: recipe fields given as options.
        asked: other options, by the names of ``Comparison``'s fields; None if not given.
        resume: whether to go on with the comparison in the folder.
        overwrite: whether to delete it first.

    Raises:
        ValueError: for an unknown name, or a number out of range.
        FileNotFoundError: for rows that are not there.
    """
    refuse_taken_by_other(folder, resume=resume, overwrite=overwrite)
    if resume:
        chosen = saved_comparison(folder)
    else:
        chosen = comparison_of(outline(None, overrides, {**options, **FIXED}), asked)
    check_name(chosen.recipe["model"])
    if has_own_rows(chosen):
        there(chosen.recipe.get("data"))
        if share_of(chosen.held_out) is None:
            there(chosen.held_out)
    else:
        data_folder(chosen.recipe.get("data_dir"))


def check_reported(folder: Path, metric: str) -> bool:
    """Whether a metric has to be computed from the answers of a comparison before its report.

    Raises:
        ValueError: if the rows of the comparison cannot be scored by it.
        FileNotFoundError: if it is a function of a file that is not there.
    """
    for path in folder.glob("runs/*/*/*/result.json"):
        result = read_result(path.parent)
        if result.get("task") == JSONL:
            refuse_metric(metric, result["form"])
        elif metric != LOSS:
            raise ValueError(f"--metric {metric} is for rows of your own: take loss")
    return CODE in metric or metric in LATER


def can_be_scored(recipe: Recipe) -> bool:
    """Whether a recipe names rows to score the run on."""
    return recipe.task != JSONL or recipe.eval_data is not None


def check_explored(
    folders: Sequence[Path], texts: Sequence[str], output: Path, *, overwrite: bool
) -> Recipe:
    """Check what is to be explored, and return the outline of the first run's recipe.

    Raises:
        ValueError: as ``check_run``, for more than two runs, one without an adapter, an empty text,
            or a page that is there.
    """
    if len(folders) > 2:
        raise ValueError(f"{len(folders)} runs do not fit side by side: give one or two")
    recipes = [check_run(folder) for folder in folders]
    for folder in folders:
        refuse_no_adapter(folder, "explore another run")
    for text in texts:
        refuse_empty(text)
    refuse_there(output, overwrite=overwrite)
    return recipes[0]
