"""What can be said of a command before torch is there, which takes seconds to load.

A mistake that shows in the names, the files and the folders of a command is answered at once. All
of this is checked once more, and the rest, by what carries the command out.
"""

from pathlib import Path
from typing import Any

from lorada.methods.describe import part_names
from lorada.runs.data.rows import JSONL, Rows, load_rows
from lorada.runs.folder.folder import refuse_taken
from lorada.runs.folder.lock import refuse_file
from lorada.runs.folder.result import read_result
from lorada.runs.models.names import check_name
from lorada.runs.recipe import RECIPE_FILE, Recipe, outline
from lorada.tasks.rows import Form, resolve
from lorada.tasks.sources import data_folder

SMALL = 20 * 2**20  # bytes of a file of rows that may be read twice


def check_training(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Check where a run learns from and where it is written to.

    Raises:
        ValueError: for rows that are broken, or an output that is taken.
        FileNotFoundError: for rows that are not there.
    """
    run = Path(recipe.output)
    refuse_file(run)
    refuse_taken(run, recipe.from_adapter, resume=resume, overwrite=overwrite)
    check_name(recipe.model)
    check_rows(recipe)


def check_rows(recipe: Recipe) -> None:
    """Check the rows to learn from, and those that are held out.

    Raises:
        ValueError: for rows that are broken.
        FileNotFoundError: for rows that are not there.
    """
    if recipe.task != JSONL:
        data_folder(recipe.data_dir)
        return
    rows = _small(recipe.data)
    if recipe.eval_data is not None:
        _small(recipe.eval_data, *((rows.form, rows.labels) if rows else ()))


def check_run(folder: Path) -> Recipe:
    """Check that a folder holds a finished run; the outline of its recipe.

    Raises:
        ValueError: if it does not.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is not a run: it has no {RECIPE_FILE}")
    read_result(folder)
    recipe = outline(str(folder / RECIPE_FILE), [], {})
    check_name(recipe.model)
    return recipe


def check_scored(folder: Path, data: str | None, data_dir: str | None) -> Recipe:
    """Check a finished run, and the rows that it is to be scored on.

    Args:
        folder: the run.
        data: a file of rows; None for what its recipe says.
        data_dir: local folder of the benchmarks' rows.

    Raises:
        ValueError: as ``check_run``, or for rows that do not go with the run.
        FileNotFoundError: for rows that are not there.
    """
    recipe, result = check_run(folder), read_result(folder)
    if data is None and recipe.task != JSONL:
        data_folder(data_dir or recipe.data_dir)
    else:
        _small(data or recipe.eval_data, result["form"], tuple(result["labels"]))
    return recipe


def check_search(
    overrides: list[str], options: dict[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Check the files and names of a search, and which options it has.

    Raises:
        ValueError: for an unknown name, rows that are broken, or options that exclude each other.
        FileNotFoundError: for rows that are not there.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    refuse_file(Path(str(options["output"])))
    if not resume:  # else the folder says the rest
        recipe = outline(None, overrides, options)
        check_name(recipe.model)
        if recipe.eval_data is None:
            raise ValueError("a search scores on held-out rows: pass --eval-data FILE")
        check_rows(recipe)


def check_quickstart(output: Path, *, overwrite: bool) -> None:
    """Check that the quickstart has its model, and may write its runs.

    Raises:
        ValueError: if its folders are taken.
        ImportError: if the package of its model is missing.
    """
    for name in ("lora", "lorada_la"):
        recipe = outline("quickstart", [], {"output": str(output / name)})
        check_training(recipe, resume=False, overwrite=overwrite)


def can_be_scored(recipe: Recipe) -> bool:
    """Whether a run brings rows of its own to be scored on."""
    return recipe.task != JSONL or recipe.eval_data is not None


def check_counted(method: str, model: str, overrides: list[str]) -> None:
    """Check the names of a method and a model whose parameters are to be counted.

    Raises:
        ValueError: for an unknown name, or an override that is not key=value.
    """
    part_names(method)
    check_name(model, weights=False)
    outline(None, overrides, {"method": method, "model": model, "output": "-"})


def _small(
    path: str | None, trained: Form | None = None, labels: tuple[str, ...] = ()
) -> Rows | None:
    """The rows of a file, checked; None for a large one."""
    place = None if path is None else resolve(path)
    if place is not None and place.is_file() and place.stat().st_size > SMALL:
        return None
    return load_rows(path, trained, labels)
