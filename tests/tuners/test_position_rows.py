"""How many training rows had each position of a map: counted, and put into words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorada import LmamConfig
from lorada.tuners.position_rows import count_rows, reach

LENGTHS = [6, 6, 3, 1]


@given(lengths=st.lists(st.integers(1, 9), min_size=1), size=st.integers(1, 7))
def test_each_position_has_the_rows_that_are_long_enough(lengths, size):
    first, last = LmamConfig(length=size), LmamConfig(length=size, align="end")
    count_rows([first, last], lengths, two_stacks=False)
    expected = [sum(length > position for length in lengths) for position in range(size)]
    assert first.rows_by_position == expected
    assert last.rows_by_position == expected[::-1]


def test_rows_of_a_further_training_are_added():
    config = LmamConfig(length=4)
    for _ in range(2):
        count_rows([config], LENGTHS, two_stacks=False)
    assert config.rows_by_position == [8, 6, 6, 4]


def test_nothing_is_counted_where_positions_mean_something_else():
    encoder, distance = LmamConfig(length=4), LmamConfig(form="distance")
    count_rows([encoder], LENGTHS, two_stacks=True)
    count_rows([distance], LENGTHS, two_stacks=False)
    assert encoder.rows_by_position is distance.rows_by_position is None
    assert reach(encoder) == ""
    with pytest.raises(ValueError, match=r"^lmam.min_rows=2 needs rows counted by position"):
        count_rows([LmamConfig(min_rows=2)], LENGTHS, two_stacks=True)


@pytest.mark.parametrize("align", ["start", "end"])
def test_the_words_say_how_far_the_rows_reach(align):
    config = LmamConfig(length=8, align=align)
    count_rows([config], LENGTHS, two_stacks=False)
    word = {"start": "first", "end": "last"}[align]
    text = f"The map lies on the {word} 8 tokens. Of 4 training rows half had 6 of them or more, "
    assert reach(config) == f"{text}a tenth 6, the longest 6."
    config.min_rows = 3
    assert reach(config).endswith(" It is cut to 3, those of 3 rows or more.")
