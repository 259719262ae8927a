"""AutoPEFT's Bayesian sampler: its parts without botorch, and what it finds with it."""

import math
import sys
from types import ModuleType

import pytest
import torch

from lorada.methods.autopeft.botorch_sampler import BotorchSampler, normal_scores
from lorada.methods.autopeft.search import search
from lorada.methods.autopeft.search_space import Space, pareto

PACKAGES = ("botorch", "jax", "numpyro")
TINY = {"initial": 8, "warmup": 8, "samples": 8, "thinning": 4, "evaluations": 60, "restarts": 2,
        "draws": 16, "reference": (50.0, 2.0)}  # fmt: skip


@pytest.fixture
def pretended(monkeypatch):
    """The packages, for what does not call them."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.fixture
def botorch():
    for name in PACKAGES:
        pytest.importorskip(name, reason="needs the extra search")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_extra_before_anything_is_tried(
    pretended, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}: install the extra `search`"):
        search(lambda *_: pytest.fail("tried"), Space(8, 2), 3, "botorch")


def test_the_published_numbers_are_the_defaults(pretended):
    sampler = BotorchSampler()
    assert (sampler.initial, sampler.batch) == (100, 4)
    assert (sampler.warmup, sampler.samples, sampler.thinning) == (128, 64, 4)
    assert sampler.reference == (70.0, 26.0)
    assert (sampler.evaluations, sampler.restarts) == (2000, 10)


def test_scores_keep_the_order_and_have_the_normal_distribution():
    values = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0], [9.0, 7.0]], dtype=torch.float64)
    found = normal_scores(values, values)
    normal = torch.distributions.Normal(0.0, 1.0)
    shares = torch.tensor([5 / 8, 1 / 8, 3 / 8, 7 / 8], dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], normal.icdf(shares))
    assert (found[:3, 1] == found[0, 1]).all()  # ties
    beyond = normal_scores(torch.tensor([[0.0, 99.0]], dtype=torch.float64), values)[0]
    assert beyond[0] < found[:, 0].min()
    assert beyond[1] > found[:, 1].max()


def goal(space, best):
    """Highest at ``best`` and lower with every step away from it."""
    scale = torch.tensor([max(1, len(c) - 1) for c in space.choices], dtype=torch.float64)
    target = torch.tensor(best, dtype=torch.float64)
    return lambda points: -(points * scale - target).abs().sum(1)


def test_the_local_search_climbs_to_the_best_point_that_is_not_taken(pretended):
    space, generator = Space(768, 12), torch.Generator().manual_seed(0)
    best = (3, 10, 7, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0)
    sampler = BotorchSampler()
    value = goal(space, best)
    assert sampler._local_search(space, value, [], set(), generator) == best
    second = sampler._local_search(space, value, [best], {best}, generator)
    assert second in space.neighbours(best)


def test_the_local_search_looks_at_no_more_points_than_it_may(pretended):
    space, looked = Space(768, 12), []
    best = (3, 10, 7, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0)

    def value(points):
        looked.extend(map(tuple, points.tolist()))
        return goal(space, best)(points)

    generator = torch.Generator().manual_seed(0)
    BotorchSampler(evaluations=70)._local_search(space, value, [], set(), generator)
    assert len(looked) == len(set(looked)) == 70


def test_a_space_with_one_point_left_is_searched_to_its_end(pretended):
    space = Space(2, 2, ("bottleneck",))  # 2 sizes × 3 choices of layers
    points = {space.draw(torch.Generator().manual_seed(i)) for i in range(99)}
    (last,) = points - set(sorted(points)[:-1])
    value = goal(space, last)
    generator = torch.Generator().manual_seed(0)
    assert BotorchSampler()._local_search(space, value, [], points - {last}, generator) == last


def outcome(number, chosen):
    """A made-up task on which the upper layers and the serial adapter matter."""
    upper = sum(layer >= 3 for layer in chosen.layers) / 3
    gain = 25 * upper * (1 - math.exp(-chosen.serial / 6)) + 3 * (chosen.prefix > 0)
    lost = 2 * math.log1p(chosen.parallel) * (0 in chosen.layers)
    sizes = chosen.serial + chosen.parallel + chosen.prefix
    return 55 + gain - lost, len(chosen.layers) * 2 * 64 * sizes / 1e6 * 100


def hypervolume(trials, reference):
    """The area that is worse than a trial and better than the reference in both objectives."""
    area, reached = 0.0, reference[0]
    for trial in pareto(trials):  # each step up in accuracy costs parameters
        if trial.parameters < reference[1] and trial.accuracy > reached:
            area += (trial.accuracy - reached) * (reference[1] - trial.parameters)
            reached = trial.accuracy
    return area


def test_the_area_of_two_trials_is_what_one_counts_by_hand():
    from lorada.methods.autopeft.search_space import Trial
    from lorada.methods.autopeft.settings import Configuration

    trials = [
        Trial(Configuration(i, 0, 0, (0,)), a, p) for i, (a, p) in enumerate([(60, 1), (80, 3)])
    ]
    assert hypervolume(trials, (50.0, 4.0)) == 10 * 3 + 20 * 1


@pytest.mark.slow
def test_the_bayesian_sampler_finds_no_less_than_a_random_one_with_the_same_budget(botorch):
    space, budget = Space(64, 6), 20
    areas = {
        name: sum(
            hypervolume(search(outcome, space, budget, sampler, seed=seed), (50.0, 5.0))
            for seed in (0, 1)
        )
        for name, sampler in (
            ("random", "random"),
            ("botorch", BotorchSampler(**{**TINY, "reference": (50.0, 5.0)})),
        )
    }
    assert areas["botorch"] >= areas["random"], areas


@pytest.mark.slow
def test_a_batch_is_new_valid_and_the_same_again(botorch):
    space, sampler = Space(16, 2), BotorchSampler(**TINY)
    done = search(outcome, space, 8, seed=0)
    batch = sampler(space, done, 0)
    assert len(set(batch)) == sampler.batch == 4
    assert not {trial.configuration for trial in done} & set(batch)
    assert all(space.valid(space.point(chosen)) for chosen in batch)
    assert sampler(space, done, 0) == batch
