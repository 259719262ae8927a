"""Rows of reasoning tasks whose answer nothing could match: one line, before a model is asked."""

import re

import pytest
from folders import llama_folder
from reasoning import problem, question, source_file

from lorada.inference import generate
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.runs.data.rows import scored_rows, training_rows
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.tasks import TASKS
from lorada.tasks.arithmetic import right_letter, right_number

BOOLQ = "commonsense_llm_adapters/boolq"
MATH = "arithmetic_llm_adapters"


def recipe(tmp_path, task, protocol):
    fixed = {"model": str(tmp_path / "llama"), "task": task, "data_dir": str(tmp_path),
             "method": "full", "output": str(tmp_path / "run")}  # fmt: skip
    settings = [f"protocol={protocol}", "report_to=[]", "save_strategy=no", "max_steps=1",
                "max_length=512"]  # fmt: skip
    return load_recipe(None, settings, fixed)


def refused(message, call):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


OPTIONS = "true, false"
ANSWERS = {
    "another": ("maybe", f"answer 'maybe' is not one of {OPTIONS}"),
    "of-another-task": ("answer1", f"answer 'answer1' is not one of {OPTIONS}"),
    "empty": ("", f"answer '' is not one of {OPTIONS}"),
    "null": (None, f"answer None is not one of {OPTIONS}"),
    "truth": (True, f"answer True is not one of {OPTIONS}"),
    # Generated text is searched in lower case; the likelihood of options has no case.
    "capital": ("True", f"answer 'True' is not one of {OPTIONS}"),
}


@pytest.mark.parametrize("protocol", ["generate", "generate_clean"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_of_the_options_is_refused(case, split, protocol, tmp_path):
    answer, message = ANSWERS[case]
    good = question("is ice cold", ("true", "false"), 0)
    source_file(tmp_path, BOOLQ, split, [good, {**good, "answer": answer}])
    asked = recipe(tmp_path, "boolq", protocol)
    refused(
        f"^{BOOLQ}/{split} row 2: {message}$",
        lambda: (
            training_rows(asked, "decoder")
            if split == "train"
            else scored_rows(asked, "prompt", (), "decoder")
        ),
    )


def test_the_likelihood_protocol_refuses_the_same_answer_in_the_same_words(tmp_path):
    bad = question("is ice cold", ("true", "false"), 0) | {"answer": "maybe"}
    source_file(tmp_path, BOOLQ, "test", [bad])
    for protocol, form in (("generate", "prompt"), ("likelihood", "choice")):
        asked = recipe(tmp_path, "boolq", protocol)
        refused(
            f"^{BOOLQ}/test row 1: answer 'maybe' is not one of {OPTIONS}$",
            lambda asked=asked, form=form: scored_rows(asked, form, (), "decoder"),
        )


def test_the_options_are_those_of_the_row_not_of_the_task():
    row = question("Which?", ("answer1", "answer2", "answer3"), 2)
    for protocol in ("generate", "generate_clean"):
        assert TASKS["boolq"].protocols[protocol].convert(row)["answer"] == "answer3"


def test_an_instruction_that_is_no_text_is_refused():
    for name in ("generate", "generate_clean"):
        protocol = TASKS["gsm8k"].protocols[name]
        row = problem("Two and two?", "4", "4") | {"instruction": None}
        for convert in (protocol.convert, protocol.convert_test):
            refused("^instruction is not a text: None$", lambda c=convert, r=row: c(r))


@pytest.mark.parametrize("answer", ["4", "-1.5", "1,234.50", "4.0", " 7 ", 4, 4.5])
def test_numbers_are_answers(answer):
    assert right_number(answer) == float(str(answer).replace(",", ""))


NO_NUMBERS = ["four", "", "3/4", "A", "$5", "nan", "inf", "1e999", None, True, [4], "#### 4"]


@pytest.mark.parametrize("protocol", ["generate", "generate_clean", "quanta"])
@pytest.mark.parametrize("answer", NO_NUMBERS, ids=repr)
def test_a_row_to_score_whose_answer_is_not_a_number_is_refused(answer, protocol):
    row = problem("Two and two?", answer, "4")
    for task in ("gsm8k", "mawps", "svamp"):
        convert = TASKS[task].protocols[protocol].convert_test
        refused(f"^{re.escape(f'answer {answer!r}')} is not a number$", lambda c=convert: c(row))


@pytest.mark.parametrize("protocol", ["generate", "generate_clean", "quanta"])
@pytest.mark.parametrize("answer", ["F", "c", "AB", "", "4.0", None, 1])
def test_a_row_to_score_whose_answer_is_not_a_letter_of_aqua_is_refused(answer, protocol):
    convert = TASKS["aqua"].protocols[protocol].convert_test
    message = "^answer .* is not one of A, B, C, D, E$"
    refused(message, lambda: convert(problem("Which?", answer, "4")))
    assert [right_letter(letter) for letter in "ABCDE"] == list("ABCDE")


def test_a_row_to_learn_from_may_have_either_kind_of_answer(tmp_path):
    """MATH10K holds AQuA's letters; what is learned is the output."""
    rows = [problem("Two and two?", answer, "4") for answer in ("4.0", "C")]
    source_file(tmp_path, f"{MATH}/math10k_rebuilt", "train", rows)
    for protocol in ("generate", "quanta"):
        found, _ = training_rows(recipe(tmp_path, "gsm8k", protocol), "decoder")
        assert [row["answer"] for row in found.rows] == ["4.0", "C"]


@pytest.mark.parametrize("protocol", ["generate", "quanta"])
def test_nothing_is_generated_where_a_row_cannot_be_scored(protocol, tmp_path, monkeypatch):
    llama_folder(tmp_path / "llama", max_position_embeddings=640)
    good = problem("Two and two?", "4.0", "It is 4")
    source_file(tmp_path, f"{MATH}/math10k_rebuilt", "train", [good] * 2)
    source_file(tmp_path, f"{MATH}/gsm8k", "test", [good] * 3)
    source_file(tmp_path, f"{MATH}/mawps", "test", [good, good, {**good, "answer": "four"}])
    train(recipe(tmp_path, "gsm8k,mawps", protocol), quiet=True)
    asked = []
    for way in ("continue_batch", "write_answers"):
        monkeypatch.setattr(generate, way, lambda *batch: asked.append(batch))
    refused(
        f"^{MATH}/mawps/test row 3: answer 'four' is not a number$",
        lambda: evaluate_tasks(load_run(tmp_path / "run")),
    )
    assert not asked
