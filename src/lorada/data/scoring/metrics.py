"""Metrics of a model's answers: (answers, rows) → metrics, in percent unless noted.

Those that a user can choose among are in ``metric_names``. A metric that is undefined for these
answers is None.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from lorada.data.rows.row_content import answer_of
from lorada.data.task import Metrics
from lorada.data.tool_calls import calls_of, ends_in_calls, has_calls, same_calls
from lorada.support.row_sources import Row

MOST_CLASSES = 20  # of texts that a model writes
MOST_LETTERS = 40  # of the name of one
LEAST_OF_CLASS = 3  # rows of each of these, in the mean
THRESHOLD = 0.5  # the probability from which a text has one of several labels
Window = tuple[float, int]  # mean loss in nats, and the number of tokens that it is the mean of


def exact_match(outputs: list[str], rows: list[Row]) -> Metrics:
    """Percent of outputs that equal a right answer, apart from white space at the ends.

    Calls of tools are equal if their names and arguments are.
    """
    count = sum(_is_right(output, row) for output, row in zip(outputs, rows, strict=True))
    return {"exact_match": 100.0 * count / len(rows)}


def _is_right(output: str, row: Row) -> bool:
    if ends_in_calls(row):
        right_answer = answer_of(row).strip()
        return same_calls(output, right_answer, len(calls_of(row["messages"][-1])))
    return output.strip() in _right_answers(row)


def contains(output: str, row: Row) -> float:
    """100 if a right answer stands somewhere in an output, apart from white space at its ends.

    An empty answer stands in an empty output alone; of calls of tools, all must be in the output.
    """
    if ends_in_calls(row):
        right_answer = answer_of(row).strip()
        return 100.0 * has_calls(output, right_answer, len(calls_of(row["messages"][-1])))
    for right_answer in _right_answers(row):
        # Every text contains an empty one.
        stands_there = right_answer in output if right_answer else not output.strip()
        if stands_there:
            return 100.0
    return 0.0


def _right_answers(row: Row) -> list[str]:
    """The right answers to a row without white space at their ends; SQuAD may have several."""
    return [text.strip() for text in (answer_of(row), *row.get("other_answers", ()))]


def accuracy(predicted: list[Any], rows: list[Row]) -> Metrics:
    """Percent of rows with the right label, or the index of the right candidate."""
    count = sum(label == target_of(row) for label, row in zip(predicted, rows, strict=True))
    return {"accuracy": 100.0 * count / len(rows)}


def target_of(row: Row) -> Any:
    """The right label of a row as a text, or the index of its right candidate."""
    return str(row["label"]) if "label" in row else int(row["answer"])


def matthews(predicted: list[str], rows: list[Row]) -> Metrics:
    """Matthews' correlation of two classes in percent, 0 if either side has only one; accuracy."""
    targets = [target_of(row) for row in rows]
    positive = max(targets)
    predicted_positive = [label == positive for label in predicted]
    is_positive = [label == positive for label in targets]
    # Of two classes it is Pearson's correlation.
    correlation = _correlation(predicted_positive, is_positive)
    return {"matthews": correlation or 0.0, **accuracy(predicted, rows)}


def accuracy_and_f1(predicted: list[str], rows: list[Row], positive: str) -> Metrics:
    """Accuracy and the F1 score of the class ``positive``, in percent."""
    f1 = _f1(predicted, [target_of(row) for row in rows], positive)
    return {**accuracy(predicted, rows), "f1": f1}


def _f1(predicted: Sequence[str | None], targets: list[str], name: str) -> float:
    """2·hits / (predicted + right) of a class in percent; 0 if it is on neither side."""
    hits = sum(p == t == name for p, t in zip(predicted, targets, strict=True))
    return 200.0 * hits / ((predicted.count(name) + targets.count(name)) or 1)


def classes(predicted: list[str], rows: list[Row]) -> Metrics:
    """Accuracy, the mean of the classes' recalls, macro F1, and the recall of each class."""
    targets = [target_of(row) for row in rows]
    return {**accuracy(predicted, rows), **class_scores([*predicted], targets)}


def class_scores(predicted: list[str | None], targets: list[str]) -> Metrics:
    """The mean of the classes' recalls, macro F1, and the recall of each class, in percent.

    What names no class is None, and is no class itself in the mean of F1. ``unfound`` says in words
    which classes are never found.
    """
    counts = dict(sorted(Counter(targets).items()))
    hits = Counter(t for p, t in zip(predicted, targets, strict=True) if p == t)
    recalls = {f"recall_{name}": 100.0 * hits[name] / count for name, count in counts.items()}
    names = {name for name in (*counts, *predicted) if name is not None}
    scores: Metrics = {
        "balanced_accuracy": fmean(recalls.values()),
        "macro_f1": fmean(_f1(predicted, targets, name) for name in names),
        **recalls,
    }
    unfound = _unfound(counts, hits)
    if unfound:
        scores["unfound"] = unfound
    return scores


def _unfound(counts: dict[str, int], hits: Counter[str]) -> str:
    """In words, the classes or labels of which no row was found; empty if there is none."""
    missed = [f"0 of {count} rows of {name!r}" for name, count in counts.items() if not hits[name]]
    return ", ".join(missed)


def weighted_by_class(scores: Sequence[float], targets: Sequence[str]) -> list[float]:
    """Each row's score times a weight by which each class counts as much as any other."""
    counts = Counter(targets)
    weights = {name: len(targets) / len(counts) / count for name, count in counts.items()}
    return [score * weights[target] for score, target in zip(scores, targets, strict=True)]


def answer_classes(outputs: list[str], rows: list[Row]) -> tuple[list[str | None], list[str]]:
    """What a model wrote and what is right, as classes.

    A class is the first right answer of a row, which may have others. An output that is right by
    ``exact_match`` is of its row's class; one that is the first right answer of no row is None.
    """
    targets = [answer_of(row).strip() for row in rows]
    class_names = set(targets)
    predicted: list[str | None] = []
    for output, row, target in zip(outputs, rows, targets, strict=True):
        text = output.strip()
        if _is_right(output, row):
            predicted.append(target)
        elif text in class_names:
            predicted.append(text)
        else:
            predicted.append(None)
    return predicted, targets


def are_classes(targets: Sequence[str]) -> bool:
    """Whether right answers are short names of a few classes, as of a text that is good or bad."""
    names = set(targets)
    if not 2 <= len(names) <= MOST_CLASSES or len(targets) < LEAST_OF_CLASS * len(names):
        return False
    return all(len(name) <= MOST_LETTERS for name in names)


def label_sets(predicted: list[list[str]], rows: list[Row]) -> Metrics:
    """Of texts with several labels: F1 in four ways, exact match, and the F1 of each label.

    ``f1`` is the mean of the rows' F1, so that methods can be compared by single rows. ``micro_f1``
    is that of all decisions together, and ``macro_f1`` the mean of the labels' F1. ``threshold`` is
    the probability from which a label is given. ``unfound`` says in words which are never given.
    """
    targets = [row["labels"] for row in rows]
    pairs = list(zip(predicted, targets, strict=True))
    predicted_counts: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for labels, right_labels in pairs:
        predicted_counts.update(labels)
        counts.update(right_labels)
        hits.update(set(labels) & set(right_labels))
    f1_of_labels = {}
    for label in sorted({*predicted_counts, *counts}):
        f1_of_labels[label] = 200.0 * hits[label] / (predicted_counts[label] + counts[label])
    either = predicted_counts.total() + counts.total()
    scores: Metrics = {
        "f1": fmean(set_f1(labels, right_labels) for labels, right_labels in pairs),
        # Where no text has a label and none is given, all is right.
        "micro_f1": 200.0 * hits.total() / either if either else 100.0,
        "macro_f1": fmean(f1_of_labels.values()) if f1_of_labels else 100.0,
        "exact_match": fmean(set_match(labels, right_labels) for labels, right_labels in pairs),
        "threshold": THRESHOLD,
    }
    for label, value in f1_of_labels.items():
        scores[f"f1_{label}"] = value
    unfound = _unfound(dict(sorted(counts.items())), hits)
    if unfound:
        scores["unfound"] = unfound
    return scores


def set_f1(predicted: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the labels of one text in percent; 100 where it rightly has none."""
    if not predicted and not right:
        return 100.0
    hits = len(set(predicted) & set(right))
    return 200.0 * hits / (len(set(predicted)) + len(set(right)))


def set_match(predicted: Sequence[str], right: Sequence[str]) -> float:
    """100 if all labels of one text are right, else 0."""
    return 100.0 * (set(predicted) == set(right))


def numbers(predicted: list[float], rows: list[Row]) -> Metrics:
    """MAE and RMSE in the unit of the rows, R² (1 is perfect), and the correlations."""
    targets = np.array([float(row["score"]) for row in rows])
    errors = np.array(predicted) - targets
    spread = float(np.square(targets - targets.mean()).sum())
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "r2": 1.0 - float(np.square(errors).sum()) / spread if spread else None,
        **correlations(predicted, rows),
    }


def correlations(predicted: list[float], rows: list[Row]) -> Metrics:
    """Pearson's and Spearman's correlation in percent; None if either side is constant."""
    import pandas as pd

    targets = [float(row["score"]) for row in rows]
    # Spearman's is Pearson's of the ranks, in which ties share theirs.
    predicted_ranks = list(pd.Series(predicted).rank())
    target_ranks = list(pd.Series(targets).rank())
    return {
        "pearson": _correlation(predicted, targets),
        "spearman": _correlation(predicted_ranks, target_ranks),
    }


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation in percent; None if either side is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return 100.0 * float(np.corrcoef(first, second)[0, 1])


def perplexity(windows: list[Window], rows: list[Row]) -> Metrics:
    """The exponential of the mean loss of all tokens that are predicted in the windows."""
    tokens = sum(count for _, count in windows)
    return {"perplexity": math.exp(sum(loss * count for loss, count in windows) / tokens)}
