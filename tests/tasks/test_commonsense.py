"""The commonsense tasks: prompts byte for byte, and answers found in text."""

import pytest
from reasoning import WORDS, question

from lorada.tasks import TASKS
from lorada.tasks.commonsense import choose_options, first_option, match_options
from lorada.tasks.llm_adapters_prompt import training_prompt
from lorada.tasks.quanta_prompt import clean


def test_the_training_prompt_with_an_input_byte_for_byte():
    assert training_prompt("Name it.", "It is\nround.") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Name it.\n"
        "                \n"
        "                ### Input:\n"
        "                It is\n"
        "round.\n"
        "                \n"
        "                ### Response:\n"
        "                "
    )


def test_the_options_of_likelihood_stand_anywhere_and_in_any_case():
    row = question("Please choose: warm\n\nAnswer1: ice Answer2: fire", WORDS["siqa"], 1)
    joined = {
        **row,
        "instruction": "A _ b.\n\nOption1: x Option2: y Answer format: Answer2/answer3",
    }
    assert TASKS["siqa"].protocols["likelihood"].convert(joined)["answer"] == 0


def test_cleaning_puts_a_stop_for_newlines_where_there_is_none():
    assert clean("a\n\nb.\nc:\nd \ne\tf\n") == "a. b. c: d  e\tf."
    assert clean("a?\n\n\nb;\nc!\nd") == "a? b; c! d"


AWKWARD = [
    ("boolq", "                the correct answer is false.", "false"),
    ("boolq", "True", None),
    ("boolq", "not false, but true", "false"),
    ("boolq", "untrue", "true"),
    ("boolq", "yes\n\n### Response:\ntrue", None),
    ("siqa", "Answer1: like attending; the correct answer is answer2", "answer2"),
    ("siqa", "answer12", "answer1"),
    ("siqa", "answeranswer4", "answer4"),
    ("piqa", "solution3 solution2", "solution2"),
    ("hellaswag", "ending5", None),
    ("winogrande", "the answer is answer1", None),
    ("winogrande", "optio\nn1", None),
]


@pytest.mark.parametrize(("name", "output", "expected"), AWKWARD)
def test_the_first_option_is_found_in_awkward_outputs(name, output, expected):
    options = TASKS[name].protocols["generate"].score.keywords["options"]
    assert first_option(output, options) == expected


def test_accuracy_counts_unparsable_outputs_as_wrong():
    rows = [{"answer": a} for a in ("true", "true", "false", "true")]
    scores = match_options(["true", "false", "no idea", "so true"], rows, ("true", "false"))
    assert scores == {"accuracy": 50.0, "unparsable": 25.0}
    assert next(iter(scores)) == "accuracy"
    assert choose_options([0, 1], [{"answer": 0}, {"answer": 0}]) == {
        "accuracy": 50.0,
        "unparsable": 0.0,
    }
