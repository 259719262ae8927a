"""How long an answer may be, that those which are cut are counted, and where an answer ends."""

import json

import folders
import pytest
from folders import CHAT, TURNS, byte_tokenizer, chats, llama_folder, rows_file
from transformers import LlamaForCausalLM, pipeline

from lorada.data.tokenize import prompt_of
from lorada.inference import generate as module
from lorada.inference.chat import stream
from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.generate import end_tokens, generate, generation_settings
from lorada.inference.load import load_run
from lorada.runs.result import read_predictions, read_result

LLAMA = {"max_position_embeddings": 256, "attention_dropout": 0.0}
SETTINGS = ["report_to=[]", "save_strategy=no", "max_length=256", "per_device_train_batch_size=4"]
# 48 tokens of the tiny tokenizer, which has a token for each byte.
ALPACA = [
    {"instruction": f"{thing}?", "output": f"The {thing} stands beside the door of the old hall."}
    for thing in ("lamp", "sofa", "desk")
]
SHORT = [{"prompt": f"{n} =", "response": f" {n}"} for n in range(4)]
MEMORISES = ["max_steps=150", "learning_rate=1e-2"]
ENDS = [*MEMORISES, "max_length=48", "max_new_tokens=12"]
RUNS = {
    "alpaca": ("llama", "full", "alpaca", MEMORISES),
    "short": ("llama", "lora", "short", ["max_steps=1"]),
    "asked": ("llama", "lora", "alpaca", ["max_steps=1", "max_new_tokens=20"]),
    "half": ("llama", "lora", "long", ["max_steps=1"]),
    "chats": ("llama", "lora", "chats", ["max_steps=1"]),
    "written": ("bart", "full", "bees", ["max_steps=30", "learning_rate=1e-2", "max_new_tokens=5"]),
    "turning": ("turns-base", "full", "turns", ENDS),
    "ending": ("texts-base", "full", "ended", ENDS),
}
LONG_TURN = chats(("hi", "a" * 60), ("ho", "b"))
LONG_TURN[0]["messages"] += LONG_TURN[1]["messages"]  # its last turn is a short one
ROW_FILES = {
    "alpaca": ALPACA, "short": SHORT, "chats": LONG_TURN,
    "bees": [{"prompt": "a", "response": "b" * 20}] * 4,
    "long": [{"prompt": "a", "response": "b" * 150}] * 4,
    "ended": [{"prompt": "a", "response": "one"}, {"prompt": "b", "response": "three"}],
}  # fmt: skip


@pytest.mark.more
def test_answers_of_48_tokens_are_no_longer_cut_and_scored_0(folder, place):
    run = load_run(folder("alpaca"))
    metrics = evaluate(run, str(place / "alpaca.jsonl"))
    assert (metrics["exact_match"], metrics["cut"]) == (100, 0)
    assert next(name for name in metrics if name != "n") == "loss"
    assert metrics["loss"] < 0.1
    lines = read_predictions(run.folder)
    assert [line.answer for line in lines] == [row["output"] for row in ALPACA]
    assert [line.score for line in lines] == [-line.loss for line in lines]
    assert [line.metrics for line in lines] == [{"exact_match": 100, "contains": 100}] * 3


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("alpaca", 53),  # 48 and a tenth
        ("short", 32),
        ("asked", 20),
        ("half", 128),  # of the model's 256 tokens, since a prompt needs room too
        ("chats", 66),  # every turn of the assistant may be written
    ],
)
def test_an_answer_may_be_a_tenth_longer_than_the_longest_response(folder, name, limit):
    run = load_run(folder(name))
    assert read_result(run.folder).max_new_tokens == limit
    assert generation_settings(run)["max_new_tokens"] == limit
    assert generation_settings(run, 7)["max_new_tokens"] == 7


# Refilled batches, and those of ``generate``.
@pytest.mark.parametrize("name", ["asked", "written"])
def test_answers_that_nothing_ended_are_counted_and_said(name, folder, place, works, caplog):
    run = load_run(folder(name))
    data = place / f"{RUNS[name][2]}.jsonl"
    metrics, rows = evaluate(run, str(data)), len(data.read_text().splitlines())
    limit = {"asked": 20, "written": 5}[name]
    assert (metrics["cut"], metrics["max_new_tokens"]) == (rows, limit)
    assert all(line.cut for line in read_predictions(run.folder))
    out, _ = works("evaluate", run.folder, "--data", data)
    assert f"{rows} of {rows} answers were cut at {limit} tokens" in out
    metric = read_result(run.folder).metric
    assert f"answers are scored by {metric.name}, because {metric.reason}" in out
    generate(run, ["a"])
    assert f"1 of 1 answers were cut at {limit} tokens" in caplog.text
    caplog.clear()
    generate(run, ["a"], 3)  # who asks for three tokens knows that they are three
    assert "cut" not in caplog.text


def test_a_function_of_a_file_runs_only_if_the_command_names_it(place, works, mistake, tmp_path):
    ran = tmp_path / "ran"
    file = tmp_path / "my.py"
    file.write_text(
        f"with open({str(ran)!r}, 'a') as file: file.write('x')\n"
        "def length(prompt, response, answer, row): return len(answer)\n"
    )
    run, metric = tmp_path / "run", f"{file}:length"
    data = rows_file(tmp_path / "rows.jsonl", SHORT)
    train = ["train", "--model", place / "llama", "--method", "lora", "--data", data, "--output",
             run, *SETTINGS, "max_steps=1", f"eval_data={data}"]  # fmt: skip
    works(*train, f"metric={metric}")
    assert not ran.exists()
    works("evaluate", run, "--metric", metric)
    assert ran.read_text() == "x"
    (metrics,) = read_result(run).metrics.values()
    lines = read_predictions(run)
    assert metrics.scores["my.py:length"] == sum(len(line.answer) for line in lines) / len(lines)
    said = f"{run} is scored by {metric}, and code of a file runs only if you name it"
    assert f"{said}: add --metric {metric}" in mistake("evaluate", run)
    assert f"{said}: add metric={metric}" in mistake("train", "--resume", "--output", run)
    assert ran.read_text() == "x"
    found = json.loads(works("evaluate", run, "--metric", metric, "--json")[0])
    assert [*found][:2] == ["n", "my.py:length"]
    assert ran.read_text() == "xx"
    out, _ = works("evaluate", run, "--metric", "chrf")
    assert "because" not in out
    assert next(iter(read_result(run).metrics[str(data)].scores)) == "chrf"
    works("generate", run, "--prompt", "a")
    assert ran.read_text() == "xx"


@pytest.fixture(scope="module", autouse=True)
def bases(place):
    """A template that ends turns as no text ends; and a base that ends texts by another token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.chat_template = CHAT.replace("<e>", "<x>")
    sizes = {**folders.LLAMA, "attention_dropout": 0.0}
    folders.saved(place / "turns-base", LlamaForCausalLM, tokenizer, sizes)
    llama_folder(place / "texts-base", eos_token_id=1, attention_dropout=0.0)


@pytest.mark.more
@pytest.mark.parametrize("name", ["turning", "ending"])
def test_answers_stop_where_the_rows_stop(name, folder, place, tmp_path, monkeypatch):
    run = load_run(folder(name))
    templated, rows = name == "turning", ROW_FILES.get(RUNS[name][2], TURNS)
    right = [row["messages"][-1]["content"] if templated else row["response"] for row in rows]
    ends = ["<e>", "<x>"] if templated else ["<s>", "<e>"]
    assert end_tokens(run) == run.tokenizer.convert_tokens_to_ids(ends)
    prompts = [prompt_of(row, run.form, run.tokenizer) for row in rows]

    def answers():
        settings, parts = generation_settings(run), [range(len(prompts))]
        found = module.generate_parts(run, prompts, parts, settings, templated=templated)
        return [text.text for _, text in sorted(found)]

    assert answers() == right
    shown = []
    assert stream(run, prompts[0], shown.append) == right[0]
    assert "".join(shown) == right[0]
    monkeypatch.setattr(module, "reason_against", lambda *_: "asked to")
    assert answers() == right
    assert evaluate(run, str(place / f"{RUNS[name][2]}.jsonl"))["exact_match"] == 100
    export(run.folder, tmp_path / "out")
    writer = pipeline("text-generation", str(tmp_path / "out"), device="cpu")
    options = {"return_full_text": False, "max_new_tokens": 12, "do_sample": False}
    options["add_special_tokens"] = not templated
    written = writer(prompts, **options)
    assert [one["generated_text"] for (one,) in written] == right
