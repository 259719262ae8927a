"""Bad rows of benchmarks, such as answers that nothing could match: one line, before any model."""

import re

import pytest
from folders import refused, split_file
from reasoning import problem, question, recipe
from sample_rows import samples

from lorada.data.task_rows import scored_rows, training_rows
from lorada.data.tasks import TASKS
from lorada.inference import generate
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

BOOLQ = "commonsense_llm_adapters/boolq"
MATH = "arithmetic_llm_adapters"


def sample(task, **changes):
    return samples(task)[0]["row"] | changes


BAD = [
    ("rte", sample("rte", label=-1), ": label -1 is not in 0–1: is this a test split"),
    ("stsb", sample("stsb", label=float("nan")), ": label nan is not in 0–5"),
    ("cola", sample("cola", label="1"), ": label '1' is not a whole number in 0–1"),
    ("qnli", sample("qnli", label=True), ": label True is not a whole number in 0–1"),
    ("sst2", sample("sst2", sentence=None), ": sentence is not a text: None"),
    ("qqp", sample("qqp", question2=None), ": question2 is not a text: None"),
    ("xsum", {"document": "a"}, " has no 'summary'; its fields are document"),
    ("wmt16_en_ro", {"translation": {"en": "a"}}, " has no 'ro'"),
    ("wmt16_en_ro", {"translation": "a"}, ": translation is not an object"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_a_bad_row_is_refused_in_one_line_that_names_it(task, row, message, tmp_path):
    folder = TASKS[task].train["own"].folder
    split_file(tmp_path / folder, "train", [sample(task), row])
    fixed = {"model": "-", "output": "-", "task": task, "data_dir": str(tmp_path)}
    asked, kind = load_recipe(None, [], fixed), next(iter(TASKS[task].protocols.values())).kinds[0]
    refused(f"^{folder}/train row 2{message}", lambda: training_rows(asked, kind))


PROTOCOLS = ("generate", "likelihood")
NO_OPTIONS = [(answer, protocol) for answer in ("maybe", "answer1", "") for protocol in PROTOCOLS]
# A generated text is searched for options in lower case.
NO_OPTIONS += [(answer, "generate") for answer in ("True", None, True)]


@pytest.mark.parametrize(("answer", "protocol"), NO_OPTIONS)
def test_an_answer_that_is_none_of_the_options_is_refused(answer, protocol, tmp_path):
    good = question("is ice cold", ("true", "false"), 0)
    for split in ("train", "test"):
        split_file(tmp_path / BOOLQ, split, [good, {**good, "answer": answer}])
    asked = recipe(tmp_path, tmp_path, f"protocol={protocol}")
    message = f"row 2: answer {answer!r} is not one of true, false$"
    refused(f"^{BOOLQ}/train {message}", lambda: training_rows(asked, "decoder"))
    refused(f"^{BOOLQ}/test {message}", lambda: scored_rows(asked, "prompt", (), "decoder"))


def test_the_options_are_those_of_the_row_not_of_the_task():
    row = question("Which?", ("answer1", "answer2", "answer3"), 2)
    assert TASKS["boolq"].protocols["generate"].convert_test(row)["answer"] == "answer3"


def test_a_row_without_its_options_or_its_text_is_refused():
    row = question("x", ("true", "false"), 0) | {"instruction": "x?"}
    convert = TASKS["boolq"].protocols["likelihood"].convert
    refused("no 'Answer format: a/b'", lambda: convert(row))
    learn = TASKS["gsm8k"].protocols["generate"].convert
    row = problem("Two and two?", "4", "4") | {"instruction": None}
    refused("^instruction is not a text: None$", lambda: learn(row))


NO_NUMBERS = ["four", "", "3/4", "$5", "nan", "inf", None, True]
NO_LETTERS = ["F", "c", "AB", "", "4.0", None, 1]


@pytest.mark.parametrize("protocol", ["generate", "quanta"])
@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        *(("gsm8k", answer, "is not a number") for answer in NO_NUMBERS),
        *(("aqua", answer, "is not one of A, B, C, D, E") for answer in NO_LETTERS),
    ],
)
def test_a_row_to_score_without_a_number_or_a_letter_is_refused(task, answer, message, protocol):
    found = TASKS[task].protocols[protocol]
    row = problem("Which?", answer, "4")
    refused(f"^{re.escape(f'answer {answer!r}')} {message}$", lambda: found.convert_test(row))
    # MATH10K holds both kinds of answers; what is learned is the output.
    assert found.convert(row)["answer"] == answer
    for right in "ABCDE" if task == "aqua" else ("4", "-1.5", "1,234.50", " 7 "):
        assert found.convert_test(problem("Which?", right, "4"))


@pytest.mark.parametrize("protocol", ["generate", "quanta"])
def test_nothing_is_generated_where_a_row_cannot_be_scored(protocol, tmp_path, monkeypatch):
    good = problem("Two and two?", "4.0", "It is 4")
    split_file(tmp_path / MATH / "math10k_rebuilt", "train", [good] * 2)
    split_file(tmp_path / MATH / "gsm8k", "test", [good] * 3)
    split_file(tmp_path / MATH / "mawps", "test", [good, good, {**good, "answer": "four"}])
    settings = [f"protocol={protocol}", "max_steps=1"]
    train(recipe(tmp_path, tmp_path, *settings, task="gsm8k,mawps"), quiet=True)
    asked = []
    for way in ("_padded", "_refilled"):
        monkeypatch.setattr(generate, way, lambda *batch: asked.append(batch))
    refused(
        f"^{MATH}/mawps/test row 3: answer 'four' is not a number$",
        lambda: evaluate_tasks(load_run(tmp_path / "run")),
    )
    assert not asked


def test_rows_of_a_users_own_are_refused_beside_a_benchmark():
    given = {"model": "-", "output": "-", "data": "r.jsonl", "task": "rte"}
    said = "^data=r.jsonl is for rows of your own, and task=rte has others: leave it out"
    refused(said, lambda: training_rows(load_recipe(None, [], given), "encoder"))
