"""Metrics: (what the model gave, the rows) → numbers, in percent unless they say otherwise.

What scikit-learn and scipy have is taken from them (the extra ``metrics``); the rest is a line.
"""

import math
from typing import Any

from lorada.support.errors import needing
from lorada.tasks.rows import Row, answer_of

Metrics = dict[str, float]


def exact_match(outputs: list[str], rows: list[Row]) -> Metrics:
    """Percent of outputs that equal the answer, white space at the ends aside."""
    pairs = zip(outputs, rows, strict=True)
    right = sum(output.strip() == answer_of(row).strip() for output, row in pairs)
    return {"exact_match": 100.0 * right / len(rows)}


def accuracy(predicted: list[Any], rows: list[Row]) -> Metrics:
    """Percent of rows whose label, or index of the right candidate, was given."""
    right = sum(p == _target(row) for p, row in zip(predicted, rows, strict=True))
    return {"accuracy": 100.0 * right / len(rows)}


def _target(row: Row) -> Any:
    return str(row["label"]) if "label" in row else int(row["answer"])


def matthews(predicted: list[str], rows: list[Row]) -> Metrics:
    """Matthews' correlation coefficient in percent, and accuracy; 0 if one class alone is given."""
    with needing("metrics"):
        from sklearn.metrics import matthews_corrcoef

    coefficient = float(matthews_corrcoef([_target(row) for row in rows], predicted))
    return {"matthews": 100.0 * coefficient, **accuracy(predicted, rows)}


def accuracy_and_f1(predicted: list[str], rows: list[Row], positive: str) -> Metrics:
    """Accuracy and the F1 score of the class ``positive``, in percent."""
    with needing("metrics"):
        from sklearn.metrics import f1_score

    targets = [_target(row) for row in rows]
    f1 = float(f1_score(targets, predicted, pos_label=positive, zero_division=0.0))
    return {**accuracy(predicted, rows), "f1": 100.0 * f1}


def correlations(predicted: list[float], rows: list[Row]) -> Metrics:
    """Pearson's and Spearman's correlation in percent; 0 where one side does not vary."""
    with needing("metrics"):
        from scipy.stats import pearsonr, spearmanr

    targets = [float(row["score"]) for row in rows]
    if len(set(targets)) < 2 or len(set(predicted)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    pearson = float(pearsonr(predicted, targets).statistic)
    spearman = float(spearmanr(predicted, targets).statistic)
    return {"pearson": 100.0 * pearson, "spearman": 100.0 * spearman}


def perplexity(losses: list[float], rows: list[Row]) -> Metrics:
    """The exponential of the mean over windows of their mean losses (nats a token)."""
    return {"perplexity": math.exp(sum(losses) / len(losses))}
