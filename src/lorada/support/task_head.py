"""``TaskHead``: what a model has on top to answer rows with classes, labels or a number."""

from collections.abc import Sequence
from typing import NamedTuple

from lorada.support.row_sources import Form

SEVERAL_LABELS = "multi_label_classification"  # as transformers calls it


class TaskHead(NamedTuple):
    """The head of a model: how many outputs it has, and what they mean."""

    outputs: int
    problem: str = "single_label_classification"  # as transformers calls it, which has its loss
    names: tuple[str, ...] = ()  # of the outputs, for the model's config


def head_for(form: Form, labels: Sequence[str]) -> TaskHead | None:
    """The head for rows of a form with these ``labels``; None for rows that need none.

    Several labels a row are learned by a sigmoid for each: log-loss of each output by itself.
    """
    if form == "score":
        return TaskHead(1, "regression")
    if form == "label":
        return TaskHead(len(labels), "single_label_classification", tuple(labels))
    if form == "labels":
        return TaskHead(len(labels), SEVERAL_LABELS, tuple(labels))
    return None
