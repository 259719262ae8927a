"""The search of AutoPEFT: its space, its samplers, its Pareto set, and going on after an end."""

import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorada.methods.autopeft.search import search
from lorada.methods.autopeft.search_space import Space, Trial, pareto, random_sampler
from lorada.methods.autopeft.settings import Configuration
from lorada.methods.callbacks.sampling import generator_at

FULL = Space(768, 12)
SMALL = Space(4, 3, ("bottleneck", "prefix"))  # sizes 4, 2, 1, 0: 15 × 7 configurations


def score(number, chosen):
    """A made-up outcome: later layers and larger blocks help, less and less."""
    weights = len(chosen.layers) * (chosen.serial + chosen.parallel + chosen.prefix)
    late = sum(layer + 1 for layer in chosen.layers)
    return 50 + 5 * math.log1p(chosen.serial) + late / 4 + (chosen.prefix > 0), weights / 1000


def test_the_space_is_the_published_one():
    sizes = (768, 384, 192, 96, 48, 24, 12, 6, 3, 1, 0)
    assert FULL.choices == (sizes,) * 3 + ((0, 1),) * 12
    assert FULL.size() == (11**3 - 1) * (2**12 - 1)
    assert Space(1024, 24).choices[0] == (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 0)


def everything(space):
    return {
        space.at(p)
        for p in torch.cartesian_prod(*(torch.arange(len(c)) for c in space.choices)).tolist()
        if space.valid(tuple(p))
    }


def test_a_configuration_is_valid_if_a_block_and_a_layer_are_left():
    found = everything(SMALL)
    assert len(found) == SMALL.size() == 15 * 7
    assert all(c.parallel == 0 and c.layers and (c.serial or c.prefix) for c in found)


@given(st.integers(1, 1024), st.integers(1, 24), st.integers(0, 2**31), st.data())
@settings(max_examples=50, deadline=None)
def test_draws_and_neighbours_are_valid_and_one_step_away(width, depth, seed, data):
    parts = data.draw(
        st.lists(st.sampled_from(Space(1, 1).parts), min_size=1, unique=True).map(tuple)
    )
    space = Space(width, depth, parts)
    point = space.draw(torch.Generator().manual_seed(seed))
    assert space.valid(point)
    assert space.point(space.at(point)) == point
    for near in space.neighbours(point):
        assert space.valid(near)
        assert sum(abs(a - b) for a, b in zip(point, near, strict=True)) == 1


def test_random_draws_are_uniform():
    space, draws = Space(2, 2, ("bottleneck", "parallel_ffn")), 12_000
    drawn = Counter(space.draw(generator_at(0, i)) for i in range(draws))
    assert len(drawn) == space.size() == 8 * 3
    expected = draws / space.size()
    deviation = max(abs(count - expected) for count in drawn.values())
    assert deviation < 4.5 * math.sqrt(expected)


def test_random_search_is_decided_by_its_seed_and_never_tries_one_twice():
    runs = [search(score, SMALL, 105, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert {trial.configuration for trial in runs[0]} == everything(SMALL)


def brute_force(trials):
    def beaten(t):
        return any(
            (o.accuracy, -o.parameters) != (t.accuracy, -t.parameters)
            and o.accuracy >= t.accuracy
            and o.parameters <= t.parameters
            for o in trials
        )

    return [t for t in trials if not beaten(t)]


NUMBER = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(NUMBER, NUMBER), max_size=30))
def test_the_pareto_set_is_what_no_other_trial_beats(outcomes):
    trials = [
        Trial(Configuration(i, 0, 0, (0,)), accuracy, parameters)
        for i, (accuracy, parameters) in enumerate(outcomes)
    ]
    found = pareto(trials)
    assert set(found) == set(brute_force(trials))
    assert [t.parameters for t in found] == sorted(t.parameters for t in found)


def in_threes(space, trials, seed):
    """A sampler of batches."""
    drawn = (space.draw(generator_at(seed + 1, 3 * len(trials) + i)) for i in range(3))
    return [space.at(point) for point in drawn]


@pytest.mark.parametrize("sampler", ["random", in_threes])
@pytest.mark.parametrize("ends_at", [0, 2, 4])
def test_a_search_that_was_ended_goes_on_as_if_it_had_not_been(sampler, ends_at, tmp_path):
    state, tried = tmp_path / "state.json", []

    def evaluate(number, chosen):
        tried.append(number)
        if len(tried) == ends_at + 1:
            raise KeyboardInterrupt
        return score(number, chosen)

    with pytest.raises(KeyboardInterrupt):
        search(evaluate, FULL, 7, sampler, state)
    assert len(json.loads(state.read_text())["trials"]) == ends_at
    done = search(evaluate, FULL, 7, sampler, state)

    assert tried == [*range(ends_at + 1), *range(ends_at, 7)]
    assert done == search(score, FULL, 7, sampler)
    assert search(evaluate, FULL, 7, sampler, state) == done  # it is complete
    assert len(tried) == 8


OTHER = {
    "another seed": ({"seed": 1}, "had seed=0, not 1"),
    "another sampler": ({"sampler": in_threes}, "had sampler='random', not 'function'"),
    "another space": ({"space": Space(768, 11)}, "had space="),
    "no trials": ({"trials": 0}, "trials=0 must be at least 1"),
    "too many trials": (
        {"space": SMALL, "trials": 106},
        "trials=106 is more than the 105 configurations there are",
    ),
    "unknown sampler": ({"sampler": "randon"}, "unknown sampler 'randon'; did you mean random"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_search_that_cannot_be_is_an_error_in_one_line(case, tmp_path):
    state, (changed, message) = tmp_path / "state.json", OTHER[case]
    given = {"space": FULL, "trials": 2, "sampler": "random", "state_file": state}
    search(score, **given)
    with pytest.raises(ValueError, match=r".") as error:
        search(score, **{**given, **changed})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"space": 3}'])
def test_a_file_that_is_no_search_is_named(text, tmp_path):
    state = tmp_path / "state.json"
    state.write_text(text)
    with pytest.raises(ValueError, match=r"state.json is not the state of a search"):
        search(score, FULL, 2, "random", state)


def test_a_random_proposal_depends_on_the_trials_so_far_alone():
    done = search(score, FULL, 5)
    assert random_sampler(FULL, done[:4], 0) == [done[4].configuration]
