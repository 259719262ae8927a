"""The vote of several runs on texts."""

from lorada.support.majority import majority


def test_the_majority_decides_and_an_open_vote_is_that_of_the_first_run():
    answers = [["a", "b", "a", "a"], ["b", "b", "b", "b"], ["b", "a", "c", "a"]]
    assert majority(answers) == [1, 0, 0, 0]
