"""Arithmetic and commonsense tasks: prompts, answers found in text, what is learned, and runs."""

import json
from math import inf

import pytest
from folders import byte_tokenizer, refused, split_file
from reasoning import ROW, WORDS, problem, question, recipe

from lorada.data.batches import IGNORED
from lorada.data.benchmarks.arithmetic import (
    first_letter,
    last_number,
    score_letters,
    score_numbers,
)
from lorada.data.benchmarks.commonsense import (
    COMMONSENSE,
    choose_options,
    first_option,
    match_options,
)
from lorada.data.benchmarks.published_prompts import answered, on_one_line, training_prompt
from lorada.data.rows.training_rows import training_rows
from lorada.data.tasks import TASKS
from lorada.data.tokenize import EncodeOptions, encode
from lorada.inference import generate
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.training.train import train

TOKENIZER = byte_tokenizer()
NUMBERS = [
    ("The answer is 4.", 4.0),
    ("$1,234.50", 1234.5),
    ("1,234 or 5,678", 5678.0),
    ("it fell to -1.5 degrees", -1.5),
    ("5-3", -3.0),
    (".5", 5.0),
    ("1.2.3", 3.0),
    ("2 + 2 = 4. #### 4\n### Response: 7", 4.0),
    ("four", inf),
    ("-", inf),
    ("", inf),
    ("9" * 400, inf),
]


@pytest.mark.parametrize(("output", "expected"), NUMBERS)
def test_the_last_number_is_found_in_awkward_outputs(output, expected):
    assert last_number(answered(output)) == expected


LETTERS = [
    ("The answer is (C).", "C"),
    ("A train goes at 5", "A"),
    ("answer: b", None),
    ("Because of D", "B"),
    ("", None),
]


@pytest.mark.parametrize(("output", "expected"), LETTERS)
def test_the_first_letter_is_found_even_in_words(output, expected):
    assert first_letter(output) == expected


def test_both_metrics_of_numbers_by_hand():
    rows = [{"answer": "5.0"}] * 5
    scores = score_numbers(["5", "999", "none", "4", "-3"], rows, answered)
    assert scores == {"exact": 20.0, "quanta_one_sided": 60.0, "unparsable": 20.0}
    assert next(iter(scores)) == "exact"


@pytest.mark.parametrize(
    ("output", "exact", "one_sided"),
    [
        ("1,000.0009", 100, 100), ("999.9991", 100, 0), ("999.9989", 0, 0), ("1000.0011", 0, 100),
        ("999.999995", 100, 100),
    ],
)  # fmt: skip
def test_how_near_a_number_must_be(output, exact, one_sided):
    scores = score_numbers([output], [{"answer": "1,000"}], answered)
    assert (scores["exact"], scores["quanta_one_sided"]) == (exact, one_sided)


def test_both_metrics_of_letters_by_hand():
    rows = [{"answer": a} for a in "CCEE"]
    outputs = ["it is C", "perhaps B, C", "I say E", "nothing"]
    # QuanTA also reads the letters behind E: the "I" of the third.
    scores = score_letters(outputs, rows, answered)
    assert scores == {"exact": 50.0, "quanta_one_sided": 25.0, "unparsable": 25.0}


def test_what_chatgpt_said_is_never_the_right_answer():
    row = problem("Two and two?", "4.0", "The answer is 5.")
    for name in ("generate", "quanta"):
        protocol = TASKS["svamp"].protocols[name]
        scored = protocol.convert_test(row)
        assert "5" not in json.dumps(scored)
        assert protocol.score(["It is 4"], [scored])["exact"] == 100
        assert protocol.score(["It is 5"], [scored])["exact"] == 0


def test_only_quantas_rationale_counts_in_training():
    protocol = TASKS["gsm8k"].protocols["quanta"]
    options = EncodeOptions(256, loss_on=protocol.loss_on, joint=protocol.joint)
    row = problem("Two and\ntwo?", "4.0", "Count:\n2 + 2 = 4\n\nSo it is\n4")
    (encoded,) = encode([protocol.convert(row)], "prompt", TOKENIZER, options)
    counted = [i for i in encoded.features["labels"] if i != IGNORED]
    assert TOKENIZER.decode(counted) == " Count: 2 + 2 = 4. So it is. 4\n<e>"


def folder_of(tmp_path):
    rows = [problem(f"{n} and {n}?", "4.0", "It is\n4") for n in range(8)]
    split_file(tmp_path / "data/arithmetic_llm_adapters/math10k_rebuilt", "train", rows)
    for name, answer in (("gsm8k", "4.0"), ("AQuA", "C")):
        tested = [problem(f"{n} and {n}?", answer, "It is 5") for n in range(4)]
        split_file(tmp_path / "data/arithmetic_llm_adapters" / name, "test", tested)
    return tmp_path / "data"


def test_a_run_learns_quantas_one_line_and_is_scored_by_both_metrics(tmp_path):
    data = folder_of(tmp_path)
    quanta = recipe(tmp_path, data, "protocol=quanta", "max_steps=60", task="gsm8k,aqua")
    train(quanta, quiet=True)
    run = load_run(tmp_path / "run")
    answers = generate.generate(run, ["1 and 1?\nAnswer:"])
    assert answers == [" It is. 4\n"]
    scores = evaluate_tasks(run)
    for metric in ("exact", "quanta_one_sided"):
        assert scores["gsm8k"][metric] == 100
        assert scores["aqua"][metric] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["unparsable"] == {"gsm8k": 0, "aqua": 100}


def test_protocols_that_count_different_tokens_are_not_trained_together(tmp_path, monkeypatch):
    data = folder_of(tmp_path)
    asked = [question("q", ("a", "b"), 0)]
    split_file(data / "commonsense_llm_adapters/boolq", "train", asked)
    monkeypatch.setitem(TASKS["gsm8k"].protocols, "generate", TASKS["gsm8k"].protocols["quanta"])
    both = recipe(tmp_path, data, task="boolq,gsm8k")
    said = "rows or losses of these tasks differ: train one at a time"
    refused(said, lambda: training_rows(both, "decoder"))


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
    assert on_one_line("a\n\nb.\nc:\nd \ne\tf\n") == "a. b. c: d  e\tf."
    assert on_one_line("a?\n\n\nb;\nc!\nd") == "a? b; c! d"


OPTIONS = [
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


@pytest.mark.parametrize(("name", "output", "expected"), OPTIONS)
def test_the_first_option_is_found_in_awkward_outputs(name, output, expected):
    options = TASKS[name].protocols["generate"].score.keywords["options"]
    assert first_option(output, options) == expected


def test_accuracy_counts_unparsable_outputs_as_wrong():
    rows = [{"answer": a} for a in ("true", "true", "false", "true")]
    scores = match_options(["true", "false", "no idea", "so true"], rows, ("true", "false"))
    assert scores == {"accuracy": 50.0, "unparsable": 25.0}
    assert next(iter(scores)) == "accuracy"
    scores = choose_options([0, 1], [{"answer": 0}, {"answer": 0}])
    assert scores == {"accuracy": 50.0, "unparsable": 0.0}


def learned(**options):
    protocol = TASKS["boolq"].protocols["generate"]
    row = protocol.convert(ROW)
    options = {"loss_on": protocol.loss_on, "joint": protocol.joint, **options}
    (encoded,) = encode([row], "prompt", TOKENIZER, EncodeOptions(**{"max_length": 512, **options}))
    return row, encoded


@pytest.mark.parametrize("room", [-1, 0, 1, 99])
def test_prompt_and_answer_are_one_text_and_an_end_token_where_there_is_room(room):
    row, _ = learned()
    text = f"{row['prompt']}the correct answer is false"
    _, encoded = learned(max_length=len(text) + room)
    found = encoded.features["input_ids"]
    assert TOKENIZER.decode(found) == (f"{text}<e>" if room > 0 else text[: len(text) + room])
    assert encoded.features["labels"] == found
    assert encoded.truncated == (room < 0)


def test_candidates_are_the_tokens_they_have_behind_the_prompt():
    """A tokenizer that puts a space before every text, as LLaMA's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    row = TASKS["boolq"].protocols["likelihood"].convert(ROW)
    assert tokenizer.decode(tokenizer("x")["input_ids"]) == " x"
    (one,) = encode([row | {"candidates": ["x", "yz"]}], "choice", tokenizer, EncodeOptions(512))
    assert [tokenizer.decode(ids) for ids in one.features["candidates"]] == ["x", "yz"]
    (encoded,) = encode([row], "choice", tokenizer, EncodeOptions(512))
    whole = tokenizer(f"{row['prompt']} the correct answer is false.")["input_ids"]
    assert encoded.features["prompt"] + encoded.features["candidates"][1] == whole


def test_a_long_question_loses_its_beginning_before_the_candidates():
    row = TASKS["boolq"].protocols["likelihood"].convert(ROW)
    (encoded,) = encode([row], "choice", TOKENIZER, EncodeOptions(44))
    candidates = [TOKENIZER.decode(ids) for ids in encoded.features["candidates"]]
    assert candidates == row["candidates"]
    longest = max(len(text) for text in candidates)
    assert TOKENIZER.decode(encoded.features["prompt"]) == row["prompt"][-(44 - longest) :]


def boolq_folder(tmp_path, right):
    rows = [question(f"question {n}", WORDS["boolq"], right(n)) for n in range(8)]
    for split in ("train", "test"):
        split_file(tmp_path / "data/commonsense_llm_adapters/boolq", split, rows)
    return tmp_path / "data"


def test_a_model_that_has_learned_nothing_is_unparsable(tmp_path):
    data = boolq_folder(tmp_path, lambda n: n % 2)
    settings = ["protocol=generate", "max_steps=1", "max_new_tokens=4", "train_rows=2"]
    train(recipe(tmp_path, data, *settings), quiet=True)
    scores = evaluate_tasks(load_run(tmp_path / "run"))["boolq"]
    assert (scores["accuracy"], scores["unparsable"]) == (0, 100)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["unparsable"] == {"boolq": 100}
    assert result["recipe"]["protocol"] == "generate"


def test_a_run_learns_options_by_likelihood_and_is_never_unparsable(tmp_path):
    data = boolq_folder(tmp_path, lambda _: 1)
    train(recipe(tmp_path, data, "protocol=likelihood", "max_steps=12"), quiet=True)
    scores = evaluate_tasks(load_run(tmp_path / "run"))["boolq"]
    assert (scores["accuracy"], scores["unparsable"], scores["n"]) == (100, 0, 8)


def test_all_eight_tasks_are_trained_on_the_mix_read_once(tmp_path):
    rows = [question(f"q {n}", list(WORDS.values())[n % 6], 0) for n in range(6)]
    folder = "commonsense_llm_adapters/commonsense_mix"
    split_file(tmp_path / folder, "train", rows)
    mixed = recipe(tmp_path, tmp_path, "train_on=commonsense_170k", task=",".join(COMMONSENSE))
    found, _ = training_rows(mixed, "decoder")
    assert [row["answer"] for row in found.rows] == [row["answer"] for row in rows]
    assert found.path == f"{folder}/train"
