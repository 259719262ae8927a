"""A chat template of the user's: it is trained with, kept in the run, and used from there."""

import json
import shutil

import pytest
from folders import CHAT, llama_folder, rows_file
from trained_runs import before_its_end, run_recipe

from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.runs.result import read_predictions, read_result
from lorada.training.train import train

LARGE = {"max_position_embeddings": 256, "attention_dropout": 0.0}
TEMPLATE = CHAT.replace(
    "{{ m.content }}", "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson }}{% endfor %}",
)  # fmt: skip
SETTINGS = ["report_to=[]", "max_length=128", "per_device_train_batch_size=4", "save_steps=2"]


def called(item):
    call = {"type": "function", "function": {"name": "stock", "arguments": {"item": item}}}
    asked = {"role": "user", "content": f"{item}?"}
    return {"messages": [asked, {"role": "assistant", "content": "", "tool_calls": [call]}]}


ROWS = [called(item) for item in ("lamp", "sofa", "desk", "rug")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("templates")
    llama_folder(place / "llama", **LARGE)
    rows_file(place / "calls.jsonl", ROWS)
    (place / "tools.jinja").write_text(TEMPLATE)
    return place


@pytest.fixture(scope="module")
def run(place):
    settings = [*SETTINGS, f"chat_template={place / 'tools.jinja'}", "max_steps=150",
                "learning_rate=1e-2"]  # fmt: skip
    asked = run_recipe(settings, place, place / "run", rows="calls", method="full")
    train(asked, quiet=True)
    return place / "run"


def test_a_run_that_learned_calls_writes_them_and_is_scored_by_name_and_arguments(run, place):
    metrics = evaluate(load_run(run), str(place / "calls.jsonl"))
    assert (metrics["exact_match"], metrics["contains"], metrics["cut"]) == (100, 100, 0)
    answers = [line.answer for line in read_predictions(run)]
    assert json.loads(answers[0]) == {"name": "stock", "arguments": {"item": "lamp"}}
    size = max(map(len, answers))
    assert read_result(run).max_new_tokens == size + -(-size // 10)


def test_a_moved_run_and_its_export_have_the_template_that_it_learned(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(recipe.replace("tools.jinja", "gone.jinja"))
    assert load_run(moved).tokenizer.chat_template == TEMPLATE
    export(moved, tmp_path / "whole")
    assert (tmp_path / "whole" / "chat_template.jinja").read_text() == TEMPLATE


def test_the_limit_of_answers_can_be_given_when_they_are_written(run, place, works, mistake):
    data, out = place / "calls.jsonl", place / "answers.jsonl"
    printed, _ = works("evaluate", run, "--data", data, "--max-new-tokens", 7)
    assert "4 of 4 answers were cut at 7 tokens" in printed
    works("predict", run, "--data", data, "--max-new-tokens", 7, "--output", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(len(row["answer"]), row["cut"]) for row in rows] == [(7, True)] * 4
    assert "--max-new-tokens" in mistake("predict", run, "--data", data, "--max-new-tokens", 0)


def test_templates_that_are_missing_changed_or_of_no_use_are_refused(run, place, mistake, tmp_path):
    base = ["train", "--model", place / "llama", "--method", "lora", "--data"]
    calls, prompts = place / "calls.jsonl", rows_file(tmp_path / "prompts.jsonl")
    out = ["--output", tmp_path / "new", *SETTINGS]
    assert "chat_template=gone.jinja: there is no such file" in mistake(
        *base, calls, *out, "chat_template=gone.jinja"
    )
    said = mistake(*base, prompts, *out, f"chat_template={place / 'tools.jinja'}")
    assert "is for chats" in said
    assert "row 1: the chat template of" in mistake(*base, calls, *out)
    assert "leaves out calls of tools" in mistake(*base, calls, *out, "--dry-run")
    cut_off = before_its_end(run, tmp_path / "cut off")
    (cut_off / "trained_template.jinja").write_text(CHAT)
    said = mistake("train", "--resume", "--output", cut_off)
    assert "is not the one that this run began with: put it back" in said
