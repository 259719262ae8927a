"""Rows of data sets on the hub, and of Arrow, in the types of JSON."""

import json
from typing import Any

from lorada.support.row_sources import HUB, Row


def load_from_hub(problem: str, remedy: str, *names: str | None, **options: str | None) -> Any:
    """What ``datasets.load_dataset`` returns.

    Args:
        problem: how the error begins if that fails: what cannot be loaded.
        remedy: how it ends: what to do instead.
        names: positional arguments of ``load_dataset``.
        options: its named arguments.

    Raises:
        ValueError: whatever kind of error it fails with.
    """
    from datasets import load_dataset

    try:
        return load_dataset(*names, **options)
    except Exception as error:  # the hub's client raises many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{problem} ({reason}): {remedy}") from error


def hub_rows(name: str, config: str | None, split: str | None) -> list[Row]:
    """Load the rows of one split, with the names of classes in place of their numbers.

    Args:
        name: of the data set on the hub, or a local folder that ``datasets`` reads.
        config: one of the data set's configurations; None for its default.
        split: one of its splits; None if it has only one.

    Raises:
        ValueError: if it cannot be loaded, and if it has several splits and none is named.
    """
    from datasets import ClassLabel, DatasetDict

    problem = f"there is no file {name}, and it cannot be loaded as a data set of the hub"
    remedy = f"pass a file that is there, or {HUB}"
    dataset = load_from_hub(problem, remedy, name, config, split=split)
    if isinstance(dataset, DatasetDict):  # all splits, as none was named
        if len(dataset) > 1:
            source = f"{name}:{config}" if config else name
            splits = " or ".join(f"{source}@{split_name}" for split_name in dataset)
            raise ValueError(f"{name} has several splits: pass {splits}")
        (dataset,) = dataset.values()
    rows = [as_json(row) for row in dataset]
    for field, feature in dataset.features.items():
        # A column of lists, as of several labels a row, has the type of their items in ``feature``.
        inner = feature if isinstance(feature, ClassLabel) else getattr(feature, "feature", None)
        if isinstance(inner, ClassLabel):
            for row in rows:
                row[field] = _class_names(row[field], inner)
    return rows


def _class_names(value: Any, classes: Any) -> Any:
    """The name of a class, or of each in a list, in place of its number."""
    if isinstance(value, list):
        return [classes.int2str(number) for number in value]
    if value is None or value < 0:  # -1 stands for no class
        return value
    return classes.int2str(value)


def as_json(row: Row) -> Row:
    """A row of Arrow in JSON's types; keys that are null are left out, but for a turn's content.

    Arrow gives all objects of a column the same keys, and what one lacks would be an argument of
    its tool.
    """
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Any) -> Any:
    """A value in JSON's types, at any depth: a date becomes a text, a NumPy number too."""
    if isinstance(value, bytes):
        return value  # which is refused where a text has to be
    return json.loads(json.dumps(value, default=str), object_hook=_without_nulls)


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    """An object without the keys that are null; a turn that only calls tools keeps its content."""
    return {key: value for key, value in item.items() if value is not None or key == "content"}
