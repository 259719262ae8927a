"""The held-out loss of one answer for all rows."""

import math

import pytest
from datasets import Dataset

from lorada.training.guessing_loss import guessing_loss


def loss_of(form, labels):
    return guessing_loss(form, Dataset.from_dict({"labels": labels}))


def test_of_classes_it_is_the_entropy_of_their_frequencies():
    expected = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert loss_of("label", [0] * 18 + [1] * 2) == pytest.approx(expected)


def test_of_answers_that_repeat_it_is_their_entropy_over_the_tokens_that_count():
    yes, no = [-100, -100, 7, 2], [-100, 8, 9, 2]
    assert loss_of("prompt", [yes, no] * 10) == pytest.approx(math.log(2) / 2.5)


def test_answers_that_hardly_repeat_have_none():
    assert loss_of("prompt", [[-100, token] for token in range(20)]) is None
    assert loss_of("choice", [0, 1] * 10) is None


def test_of_several_labels_it_is_the_mean_of_their_entropies_and_of_scores_their_variance():
    labels = [[1.0, 0.0], [0.0, 0.0]] * 5  # one of even odds, one that no row has
    assert loss_of("labels", labels) == pytest.approx(math.log(2) / 2)
    assert loss_of("score", [-1.0, 1.0, 3.0, 1.0]) == pytest.approx(2.0)
