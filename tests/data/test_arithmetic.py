"""The arithmetic tasks: numbers and letters found in text, both metrics, both protocols."""

import json
from math import inf

import pytest
from folders import byte_tokenizer, refused, split_file
from reasoning import problem, question, recipe

from lorada.data.benchmarks.arithmetic import (
    first_letter,
    last_number,
    score_letters,
    score_numbers,
)
from lorada.data.benchmarks.published_prompts import answered
from lorada.data.task_rows import training_rows
from lorada.data.tasks import TASKS
from lorada.data.tokenize import IGNORED, EncodeOptions, encode
from lorada.inference import generate
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.training.train import train

AWKWARD = [
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


@pytest.mark.parametrize(("output", "expected"), AWKWARD)
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
    tokenizer, protocol = byte_tokenizer(), TASKS["gsm8k"].protocols["quanta"]
    options = EncodeOptions(256, loss_on=protocol.loss_on, joint=protocol.joint)
    row = problem("Two and\ntwo?", "4.0", "Count:\n2 + 2 = 4\n\nSo it is\n4")
    (encoded,) = encode([protocol.convert(row)], "prompt", tokenizer, options)
    counted = [i for i in encoded.features["labels"] if i != IGNORED]
    assert tokenizer.decode(counted) == " Count: 2 + 2 = 4. So it is. 4\n<e>"


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
