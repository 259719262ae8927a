"""The commonsense tasks: prompts byte for byte, and answers found in text."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import DATA
from reasoning import ROW, WORDS, question

from lorada.tasks import TASKS
from lorada.tasks.commonsense import COMMONSENSE, choose_options, first_option, match_options
from lorada.tasks.llm_adapters_prompt import clean_prompt, evaluation_prompt, training_prompt
from lorada.tasks.quanta_prompt import clean


def test_the_training_prompt_byte_for_byte():
    assert training_prompt("Is ice cold?\nSay so.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.  \n"
        "\n"
        "                ### Instruction:\n"
        "                Is ice cold?\n"
        "Say so.\n"
        "                \n"
        "                ### Response:\n"
        "                "
    )


def test_the_evaluation_prompt_byte_for_byte():
    assert evaluation_prompt("Is ice cold?\nSay so.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Is ice cold?\n"
        "Say so.\n"
        "\n"
        "                ### Response:\n"
        "                "
    )


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


def test_the_evaluation_prompt_with_an_input_byte_for_byte():
    assert evaluation_prompt("Name it.", "It is\nround.") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n"
        "\n"
        "                ### Instruction:\n"
        "                Name it.\n"
        "\n"
        "                ### Input:\n"
        "                It is\n"
        "round.\n"
        "\n"
        "                ### Response:\n"
        "                "
    )


def test_the_clean_prompt_byte_for_byte():
    assert clean_prompt("Is ice cold?") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nIs ice cold?\n\n### Response:\n"
    )
    assert clean_prompt("Name it.", "round") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName it.\n\n### Input:\nround\n\n### Response:\n"
    )


def test_a_row_is_learned_in_the_one_layout_and_asked_in_the_other():
    protocol = TASKS["boolq"].protocols["generate"]
    learned, scored = protocol.convert(ROW), protocol.convert_test(ROW)
    assert learned == {
        "prompt": training_prompt(ROW["instruction"]),
        "response": "the correct answer is false",
        "answer": "false",
    }
    assert scored == {**learned, "eval_prompt": evaluation_prompt(ROW["instruction"])}
    with_input = protocol.convert({**ROW, "input": "x"})
    assert with_input["prompt"] == training_prompt(ROW["instruction"], "x")
    assert protocol.generation == {"num_beams": 4, "max_new_tokens": 32}


def test_the_likelihood_protocol_byte_for_byte():
    row = question("Please choose: warm\n\nAnswer1: ice Answer2: fire", WORDS["siqa"], 1)
    assert TASKS["siqa"].protocols["likelihood"].convert(row) == {
        "prompt": "Please choose: warm. Answer1: ice Answer2: fire. "
        "Answer format: answer1/answer2/answer3\nAnswer:",
        "candidates": [
            " the correct answer is answer1.",
            " the correct answer is answer2.",
            " the correct answer is answer3.",
        ],
        "answer": 1,
    }
    joined = {
        **row,
        "instruction": "A _ b.\n\nOption1: x Option2: y Answer format: Answer2/answer3",
    }
    assert TASKS["siqa"].protocols["likelihood"].convert(joined)["answer"] == 0


def test_cleaning_puts_a_stop_for_newlines_where_there_is_none():
    assert clean("a\n\nb.\nc:\nd \ne\tf\n") == "a. b. c: d  e\tf."
    assert clean("a?\n\n\nb;\nc!\nd") == "a? b; c! d"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question("x", ("true", "false"), 0) | {"answer": "maybe"}, "'maybe' is not one of true"),
        (question("x", ("true", "false"), 0) | {"instruction": "x?"}, "no 'Answer format: a/b'"),
    ],
)
def test_a_row_without_its_candidates_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        TASKS["boolq"].protocols["likelihood"].convert(row)


# Invented rows in the shape of the hub's, and the words that LLM-Adapters has for them.
HUB = {
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is water.", "answer": True},
        "Please answer the following question with true or false, question: is ice cold?\n\n"
        "Answer format: true/false",
        "true",
    ),
    "piqa": (
        {"goal": "Melt ice.", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0},
        "Please choose the correct solution to the question: Melt ice.\n\nSolution1: Heat it.\n\n"
        "Solution2: Cool it.\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    "siqa": (
        {"context": "Al fell.", "question": "How is Al?", "answerA": "sore", "answerB": "glad",
         "answerC": "tall", "label": "1"},
        "Please choose the correct answer to the question: Al fell. How is Al?\n\n"
        "Answer1: sore Answer2: glad Answer3: tall\n\nAnswer format: answer1/answer2/answer3",
        "answer1",
    ),
    "hellaswag": (
        {"activity_label": "Cooking", "ctx_a": "Pat boils", "ctx_b": "", "ctx": "Pat boils",
         "endings": ["an egg.", "a tree.", "the sun.", "up."], "label": "0"},
        "Please choose the correct ending to complete the given sentence: Cooking: Pat boils\n\n"
        "Ending1: an egg. Ending2: a tree. Ending3: the sun. Ending4: up.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    "winogrande": (
        {"sentence": "The cup fell off the desk and _ broke.", "option1": "cup", "option2": "desk",
         "answer": "1"},
        "Please choose the correct answer to fill in the blank to complete the given sentence: The "
        "cup fell off the desk and _ broke.\n\nOption1: cup Option2: desk Answer format: "
        "option1/option2",
        "option1",
    ),
    "arc_easy": (
        {"question": "What is hot?", "choices": {"text": ["ice", "fire", "snow"],
         "label": ["1", "2", "3"]}, "answerKey": "2"},
        "Please choose the correct answer to the question: What is hot?\n\n"
        "Answer1: ice Answer2: fire Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
        "answer2",
    ),
    "openbookqa": (
        {"question_stem": "Rain is", "choices": {"text": ["dry", "wet"], "label": ["A", "B"]},
         "answerKey": "B"},
        "Please choose the correct answer to the question: Rain is\n\nAnswer1: dry Answer2: wet\n\n"
        "Answer format: answer1/answer2",
        "answer2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_a_row_of_the_hub_is_put_in_llm_adapters_words(name):
    row, instruction, answer = HUB[name]
    converted = TASKS[name].protocols["generate"].convert(row)
    assert converted == {
        "prompt": training_prompt(instruction),
        "response": f"the correct answer is {answer}",
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("piqa", {"label": -1}), ("siqa", {"label": ""}), ("hellaswag", {"label": ""}),
        ("winogrande", {"answer": ""}), ("arc_easy", {"answerKey": ""}),
        ("siqa", {"label": "4"}), ("piqa", {"label": 2}),
    ],
)  # fmt: skip
def test_a_row_of_a_test_split_without_answers_is_refused(name, change):
    with pytest.raises(ValueError, match="is this a test split"):
        TASKS[name].protocols["generate"].convert({**HUB[name][0], **change})


FOLDERS = {  # of the same rows in the hub's form
    "boolq": ("boolq", "validation"), "piqa": ("piqa", "validation"),
    "siqa": ("social_i_qa", "validation"), "hellaswag": ("hellaswag", "validation"),
    "winogrande": ("winogrande", "validation"), "arc_easy": ("arc_easy", "test"),
    "arc_challenge": ("arc_challenge", "test"), "openbookqa": ("openbookqa", "test"),
}  # fmt: skip


def local(folder, split):
    path = DATA / folder / f"{split}.jsonl.gz"
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.skipif(not (DATA / "commonsense").is_dir(), reason="no benchmark data: LORADA_DATA")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", COMMONSENSE)
def test_real_rows_of_the_hub_equal_those_of_llm_adapters(name, split):
    task = TASKS[name]
    source = task.train["own"] if split == "train" else task.test[""]
    folder, test = FOLDERS[name]
    theirs = local(source.folder, source.split)
    hub = local(f"commonsense/{folder}", "train" if split == "train" else test)
    if not hub:
        pytest.skip("no rows in the hub's form")
    convert = task.protocols["generate"].convert
    built = [tuple(convert(row).values()) for row in hub]
    whole = [tuple(convert(row).values()) for row in theirs]
    # The passages of BoolQ's training rows are there for a part of them only.
    assert built == whole if len(built) == len(whole) else set(built) < set(whole)


AWKWARD = [
    ("boolq", "the correct answer is true", "true"),
    ("boolq", "                the correct answer is false.", "false"),
    ("boolq", "True", None),
    ("boolq", "TRUE or FALSE", None),
    ("boolq", "not false, but true", "false"),
    ("boolq", "untrue", "true"),
    ("boolq", "", None),
    ("boolq", "yes\n\n### Response:\ntrue", None),
    ("boolq", "falsetrue", "false"),
    ("siqa", "answer3", "answer3"),
    ("siqa", "Answer1: like attending; the correct answer is answer2", "answer2"),
    ("siqa", "answer12", "answer1"),
    ("siqa", "answer 1", None),
    ("siqa", "answer6, answer5", "answer5"),
    ("siqa", "answeranswer4", "answer4"),
    ("piqa", "solution3 solution2", "solution2"),
    ("piqa", "SOLUTION1", None),
    ("hellaswag", "ending5", None),
    ("hellaswag", "bending4", "ending4"),
    ("winogrande", "option1/option2", "option1"),
    ("winogrande", "the answer is answer1", None),
    ("winogrande", "optio\nn1", None),
]


def options_of(name):
    return TASKS[name].protocols["generate"].score.keywords["options"]


@pytest.mark.parametrize(("name", "output", "expected"), AWKWARD)
def test_the_first_option_is_found_in_awkward_outputs(name, output, expected):
    assert first_option(output, options_of(name)) == expected


@given(st.sampled_from(sorted(WORDS)), st.data())
def test_an_option_is_found_wherever_it_stands(name, data):
    text = st.text(st.characters(blacklist_characters="aeost#"), max_size=20)
    option = data.draw(st.sampled_from(WORDS[name]))
    later = data.draw(st.sampled_from(WORDS[name]))
    output = f"{data.draw(text)}{option} {data.draw(text)}{later}"
    assert first_option(output, options_of(name)) == option


def test_accuracy_counts_unparsable_outputs_as_wrong():
    rows = [{"answer": a} for a in ("true", "true", "false", "true")]
    scores = match_options(["true", "false", "no idea", "so true"], rows, ("true", "false"))
    assert scores == {"accuracy": 50.0, "unparsable": 25.0}
    assert next(iter(scores)) == "accuracy"
    assert choose_options([0, 1], [{"answer": 0}, {"answer": 0}]) == {
        "accuracy": 50.0,
        "unparsable": 0.0,
    }


def test_which_protocol_is_first():
    for task in COMMONSENSE.values():
        assert list(task.protocols) == ["generate", "generate_clean", "likelihood"]
        assert task.protocol(None, "decoder") == "generate"
        with pytest.raises(ValueError, match="needs a model of kind decoder"):
            task.protocol(None, "encoder")
