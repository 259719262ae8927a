"""The order of confident learning, to compare that of `lorada rows` with.

Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in dataset labels",
Journal of Artificial Intelligence Research 70. A class has a threshold, the mean probability of it
over the rows that are labelled so. A row counts as of the likeliest of the classes whose threshold
it reaches. Rows that count as of another class than their label are the label errors, here ordered
by the probability of their label (self-confidence); the other rows follow, in the same order.
"""

import numpy as np
from numpy.typing import NDArray


def confident_order(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows, those first whose label is most surely wrong.

    Args:
        probabilities: rows × classes, of a model that has not learned these rows.
        labels: of each row, the index of its class.
    """
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == one, one].mean() for one in classes])
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    counts_as = confident.argmax(axis=1)
    is_error = (confident.max(axis=1) > 0) & (counts_as != labels)
    self_confidence = probabilities[np.arange(len(labels)), labels]
    return np.lexsort((self_confidence, ~is_error))


def precision_at(order: NDArray[np.int64], wrong: NDArray[np.bool_], first: int) -> float:
    """The share of truly wrong labels among the first rows of an order."""
    return float(wrong[order[:first]].mean())
