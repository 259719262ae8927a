"""The rows that a run learns from and is scored on: of a user's own files, or of benchmarks."""

import logging
import random
from dataclasses import dataclass, replace
from textwrap import shorten

from lorada.data.files.benchmark_files import data_folder
from lorada.data.files.read_rows import DATA, EVAL_DATA, OF_RUN, SHARED, RowsSetting, refuse_missing
from lorada.data.forms.row_matches import Columns
from lorada.data.rows.benchmark_rows import benchmark_training_rows
from lorada.data.rows.held_out_share import draw_held_out, share_of
from lorada.data.rows.own_rows import load_rows, refuse_unanswered
from lorada.data.rows.rows import Rows, refuse_kind
from lorada.data.task import Kind
from lorada.runs.recipe import JSONL, Recipe
from lorada.runs.result import RunResult
from lorada.support.in_words import counted
from lorada.support.task_head import TaskHead, head_for

logger = logging.getLogger(__name__)

HALF, HALF_SEED = 0.5, 0  # every seed of a training learns the same half
MOST_COUNTS = 200  # letters, of the classes in a line about rows
OwnClasses = tuple[str, ...] | None  # the classes of a model's head, by index


def training_rows(
    recipe: Recipe, kind: Kind, own_classes: OwnClasses = None
) -> tuple[Rows, Rows | None]:
    """Read the rows to learn from, and those held out to be measured while training, if any.

    Rows that this kind of model cannot learn, or that have nothing to tell apart, are refused.

    Args:
        recipe: names the rows, and how many of them are held out.
        kind: of the model.
        own_classes: those of a model that is a classifier already, whose order the rows' classes
            then take; None for other models.
    """
    _refuse_mixed_settings(recipe)
    if recipe.task == JSONL:
        rows = load_rows(recipe.data, columns=recipe.columns)
    else:
        rows = benchmark_training_rows(recipe, kind)
    refuse_kind(rows, kind)
    rows = replace(rows, labels=class_order(rows.labels, own_classes))
    held_out = _held_out_file(recipe, rows, kind)
    if recipe.dev_rows and held_out is not None:
        raise ValueError(
            f"dev_rows={recipe.dev_rows} and eval_data exclude each other: leave one out"
        )
    division = _divide(rows, recipe)
    head_of(division.train)  # which refuses rows with nothing to tell apart
    _log_rows(division.train, division.held_out, recipe)
    # Rows to choose a rate by come before those that are held out to be scored: a choice by the
    # latter would make their score too high.
    return division.train, division.dev or division.held_out or held_out


def rows_to_score(
    recipe: Recipe, result: RunResult, data: str | None, columns: Columns | None = None
) -> Rows:
    """Read the rows to score a run on: of files, or the share of its own rows that it holds out.

    A share is drawn again from the rows of the training, and refused if these have changed: what is
    held out of other rows may have been learned.

    Args:
        recipe: of the run.
        result: of the run, with its form, its classes and the fingerprint of its rows.
        data: the files; None for the recipe's ``eval_data``.
        columns: the user's names of fields; None for those of the training.
    """
    labels = tuple(result.labels)
    if data is not None or share_of(recipe.eval_data) is None:
        files = data or recipe.eval_data
        setting = DATA if data is not None else OF_RUN
        rows = load_rows(files, result.form, labels, columns, recipe.columns, setting=setting)
        return rows.sample(recipe.eval_rows)
    rows = load_rows(recipe.data, columns=recipe.columns, setting=SHARED)
    division = _divide(rows, recipe)
    held_out = division.held_out
    same_rows = result.data is not None and division.train.fingerprint == result.data.sha256
    if not same_rows or held_out is None:
        raise ValueError(
            f"{recipe.data} has other rows than at the training, so {recipe.eval_data} of them "
            "may have been learned: put the rows back, or pass --data FILE"
        )
    return replace(held_out, labels=labels)


def _refuse_mixed_settings(recipe: Recipe) -> None:
    """Refuse settings of benchmarks beside rows of one's own, and such rows beside benchmarks."""
    if recipe.task == JSONL:
        names = ["protocol", "train_on", "data_dir", "eval_lengths", "eval_windows"]
        owner = "benchmarks"
    else:
        names = ["data", "eval_data"]
        owner = f"rows of your own, and task={recipe.task} has others"
    for name in names:
        value = getattr(recipe, name)
        if value is not None:
            raise ValueError(f"{name}={value} is for {owner}: leave it out, or change --task")


def _held_out_file(recipe: Recipe, train: Rows, kind: Kind) -> Rows | None:
    """Read the rows of ``eval_data``; None where that names no files but a share of the rows.

    They are brought to the form and the classes of the training rows.
    """
    if not recipe.eval_data or share_of(recipe.eval_data) is not None:
        return None
    rows = load_rows(
        recipe.eval_data,
        train.form,
        train.labels,
        training_columns=recipe.columns,
        setting=EVAL_DATA,
    )
    refuse_kind(rows, kind)
    return rows.sample(recipe.eval_rows)


@dataclass(frozen=True)
class _Division:
    """The rows of a file by what they are for."""

    train: Rows
    held_out: Rows | None  # the share that is held out to be scored
    dev: Rows | None  # ``dev_rows``, by which a learning rate is chosen


def _divide(rows: Rows, recipe: Recipe) -> _Division:
    """Draw the held-out share and then the ``dev_rows`` from rows; the others are learned.

    With ``train_rows`` only so many of them are, and with ``train_halvings`` half of them, or less.

    As many ``dev_rows`` as there are rows, or more, are refused.
    """
    held_out = dev = None
    share = share_of(recipe.eval_data)
    if share is not None:
        # By a seed of its own, so that all runs of a comparison hold out the same rows.
        drawn = draw_held_out(rows.rows, share, recipe.eval_seed)
        rows, held_out = rows.split(drawn)
        refuse_unanswered(held_out)
        held_out = held_out.sample(recipe.eval_rows)
    if recipe.dev_rows:
        if recipe.dev_rows >= len(rows.rows):
            raise ValueError(
                f"dev_rows={recipe.dev_rows} leaves none of {len(rows.rows)} rows to learn from: "
                "lower it"
            )
        generator = random.Random(recipe.dev_seed)  # the same for every seed of the training
        rows, dev = rows.split(generator.sample(range(len(rows.rows)), recipe.dev_rows))
    train = rows.sample(recipe.train_rows)
    for _ in range(recipe.train_halvings):
        train = half_of(train)
    return _Division(train, held_out, dev)


def half_of(rows: Rows) -> Rows:
    """Half of some rows, of each class alike, with rows of one group or of equal content together.

    It is the same for every seed, and half of a half is a part of it.

    Raises:
        ValueError: if there are too few rows to leave one out.
    """
    half, _ = rows.split(draw_held_out(rows.rows, HALF, HALF_SEED))
    return half


def _log_rows(train: Rows, held_out: Rows | None, recipe: Recipe) -> None:
    """Say how many rows are learned and held out, and how many each class has."""
    details = ""
    counts = ", ".join(f"{label}: {count:,}" for label, count in train.classes.items())
    if counts:
        details = f" ({shorten(counts, MOST_COUNTS, placeholder=' …')})"
    if held_out is not None:
        seed = f"eval_data={recipe.eval_data}, eval_seed={recipe.eval_seed}"
        details += f", {len(held_out.rows):,} held out ({seed})"
    if details:
        logger.info("%s: %s to learn%s", train.path, counted(len(train.rows), "row"), details)


def head_of(rows: Rows) -> TaskHead | None:
    """The head that a model needs to learn these rows; None if it writes its answers.

    Raises:
        ValueError: if all rows have the same right answer, from which no head learns anything.
    """
    if rows.form == "label" and len(rows.labels) < 2:
        raise ValueError(
            f"{rows.path} has only the label {rows.labels[0]!r}: a classifier needs two or more"
        )
    if rows.form == "labels" and len({tuple(row["labels"]) for row in rows.rows}) < 2:
        labels = ", ".join(rows.rows[0]["labels"]) or "none"
        raise ValueError(
            f"every row of {rows.path} has the same labels ({labels}): nothing can be learned from "
            "them"
        )
    if rows.form == "score" and len({float(row["score"]) for row in rows.rows}) < 2:
        score = float(rows.rows[0]["score"])
        raise ValueError(
            f"{rows.path} has only the score {score:g}: nothing can be learned from it"
        )
    return head_for(rows.form, rows.labels)


def class_order(labels: tuple[str, ...], own_classes: OwnClasses) -> tuple[str, ...]:
    """Bring the classes of rows into the order of a model's own head, so that it can be kept.

    The head may have more classes than the rows. Labels that are numbers are taken for places in
    the head, with a warning. If the head lacks a class, the order of the rows stays, and a new head
    is trained.
    """
    if not labels or own_classes is None:
        return labels
    # Classes are the same in small and capital letters, and are written as in the rows.
    label_of = {label.casefold(): label for label in labels}
    order = tuple(label_of.get(name.casefold(), name) for name in own_classes)
    if set(labels) <= set(order) and len(set(order)) == len(own_classes):
        return order
    indices = tuple(map(str, range(len(own_classes))))
    if set(labels) <= set(indices):
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(own_classes))
        logger.warning("the labels are taken for indices of the model's classes: %s", classes)
        return indices
    return labels


def refuse_absent(
    recipe: Recipe, data: str | None, data_dir: str | None = None, setting: RowsSetting = DATA
) -> None:
    """Refuse rows of a user, or a folder of those of benchmarks, that are not there.

    ``setting`` is what names the user's rows.
    """
    if data is None and recipe.task != JSONL:
        data_folder(data_dir or recipe.data_dir)
    else:
        refuse_missing(data, setting)
