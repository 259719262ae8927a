"""Rows of benchmarks: those that a run learns from, and those that it is scored on."""

from collections.abc import Callable

from lorada.data.files.benchmark_files import data_folder, read_source
from lorada.data.rows.rows import Rows
from lorada.data.task import Kind, Protocol, Source
from lorada.data.tasks import TASKS
from lorada.runs.recipe import Recipe
from lorada.support.row_sources import Form, Row


def benchmark_training_rows(recipe: Recipe, kind: Kind) -> Rows:
    """Read the training rows of a recipe's benchmarks, those of one after those of another.

    ``kind`` is of the model, by which benchmarks are asked otherwise. Benchmarks whose rows or
    losses differ are refused, as one training has one form.
    """
    folder = data_folder(recipe.data_dir)
    protocols = _protocols_by_source(recipe, kind)
    trainings = set()  # the different ways in which the rows would be trained
    for protocol in protocols.values():
        trainings.add(
            (protocol.form, protocol.labels, protocol.languages, protocol.loss_on, protocol.joint)
        )
    if len(trainings) > 1:
        raise ValueError(
            f"task={recipe.task}: rows or losses of these tasks differ: train one at a time"
        )
    rows: list[Row] = []
    for source, protocol in protocols.items():
        rows += _convert_source(read_source(source, folder), protocol.convert, source)
    path = ", ".join(f"{source.folder}/{source.split}" for source in protocols)
    # All are trained alike, so any of the protocols says how; the last is taken.
    return Rows(rows, protocol.form, protocol.labels, path, protocol)


def _protocols_by_source(recipe: Recipe, kind: Kind) -> dict[Source, Protocol]:
    """The splits that a recipe's benchmarks learn from, each with its protocol.

    A split that several benchmarks learn from is there once.

    A ``train_on`` that a benchmark does not have is refused.
    """
    protocols: dict[Source, Protocol] = {}
    for name in recipe.tasks:
        task = TASKS[name]
        protocol = task.protocol(recipe.protocol, kind)
        train_on = recipe.train_on or next(iter(task.train), "")
        if train_on not in task.train:
            known = ", ".join(task.train) or "nothing"
            raise ValueError(f"train_on={train_on!r}: {name} can learn from {known}")
        protocols[task.train[train_on]] = protocol
    return protocols


def scored_rows(recipe: Recipe, form: Form, labels: tuple[str, ...], kind: Kind) -> dict[str, Rows]:
    """Read the rows that a run on benchmarks is scored on, by the name that their metrics have.

    A benchmark with several test splits has a name for each: ``mnli_matched``. Large splits are
    sampled, by the recipe's ``eval_rows`` or else by the protocol.

    Args:
        recipe: of the run.
        form: of the rows that it learned.
        labels: the classes that it learned.
        kind: of its model.
    """
    folder = data_folder(recipe.data_dir)
    rows_by_name = {}
    for task_name in recipe.tasks:
        task = TASKS[task_name]
        protocol = task.protocol(recipe.protocol, kind)
        convert = protocol.convert_test or protocol.convert
        for suffix, source in task.test.items():
            converted = _convert_source(read_source(source, folder), convert, source)
            rows = Rows(converted, form, labels, f"{source.folder}/{source.split}", protocol)
            name = f"{task_name}_{suffix}" if suffix else task_name
            rows_by_name[name] = rows.sample(recipe.eval_rows or protocol.rows)
    return rows_by_name


def _convert_source(rows: list[Row], convert: Callable[[Row], Row], source: Source) -> list[Row]:
    """Convert the rows of a split as their protocol says.

    Raises:
        ValueError: naming the row and the problem, for a row that ``convert`` cannot read.
    """
    converted = []
    for number, row in enumerate(rows, start=1):
        try:
            converted.append(convert(row))
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            problem = str(error)
            if isinstance(error, LookupError):  # a field that is missing, whose name alone it says
                problem = f"no {error} in {', '.join(row)}"
            where = f"{source.folder}/{source.split} row {number}"
            raise ValueError(f"{where}: {problem}") from error
    return converted
