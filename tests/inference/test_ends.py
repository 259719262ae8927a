"""Answers stop at the token that the run has learned to end with, which the base may not know."""

import pytest
import run_place
from folders import CHAT, LLAMA, TURNS, byte_tokenizer, llama_folder, saved
from servers import client_of, running
from transformers import LlamaForCausalLM, pipeline

from lorada.data.tokenize import prompt_of
from lorada.inference import generate as module
from lorada.inference.chat import stream
from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.generate import end_tokens
from lorada.inference.load import load_run
from lorada.inference.serving.api import Server
from lorada.inference.serving.served import open_served
from lorada.support.row_sources import Row

place = run_place.place

SETTINGS = [
    "max_steps=120", "learning_rate=0.01", "report_to=[]", "max_length=48", "max_new_tokens=12",
    "per_device_train_batch_size=4", "save_strategy=no",
]  # fmt: skip
ANSWERS: dict[str, tuple[list[Row], list[str]]] = {
    "turns": (TURNS, [turns["messages"][-1]["content"] for turns in TURNS]),
    "short": (
        [{"prompt": "a", "response": "one"}, {"prompt": "b", "response": "three"}],
        ["one", "three"],
    ),
}
ROW_FILES = {name: rows for name, (rows, _) in ANSWERS.items()}
RUNS = {"turns": ("turning", "full", "turns", []), "short": ("ending", "full", "short", [])}


@pytest.fixture(scope="module", autouse=True)
def bases(place):
    """A template that ends turns as no text ends; and a base that ends texts by another token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.chat_template = CHAT.replace("<e>", "<x>")
    saved(place / "turning", LlamaForCausalLM, tokenizer, {**LLAMA, "attention_dropout": 0.0})
    llama_folder(place / "ending", eos_token_id=1, attention_dropout=0.0)


@pytest.mark.parametrize("name", RUNS)
def test_answers_stop_where_the_rows_stop(name, folder, place, tmp_path, monkeypatch):
    run = load_run(folder(name))
    rows, right = ANSWERS[name]
    ends = run.tokenizer.convert_tokens_to_ids(
        ["<e>", "<x>"] if name == "turns" else ["<s>", "<e>"]
    )
    assert end_tokens(run) == ends
    form = "messages" if name == "turns" else "prompt"
    prompts = [prompt_of(row, form, run.tokenizer) for row in rows]
    templated = form == "messages"
    assert module.generate(run, prompts, templated=templated) == right
    shown = []
    assert stream(run, prompts[0], shown.append, lambda: False) == right[0]
    assert "".join(shown) == right[0]
    monkeypatch.setattr(module, "reason_against", lambda *_: "asked to")
    assert module.generate(run, prompts, templated=templated) == right
    assert evaluate(run, str(place / f"{RUNS[name][2]}.jsonl"))["exact_match"] == 100
    export(run.folder, tmp_path / "out")
    writer = pipeline("text-generation", str(tmp_path / "out"), device="cpu")
    options = {"return_full_text": False, "max_new_tokens": 12, "do_sample": False}
    options["add_special_tokens"] = not templated
    written = writer(prompts, **options)
    assert [one["generated_text"] for (one,) in written] == right


def test_the_server_stops_there_too(folder):
    with running(Server(open_served([folder("turns")]))) as url:
        for turns in TURNS:
            (answer,) = (
                client_of(url)
                .chat.completions.create(model="turns", messages=turns["messages"][:-1])
                .choices
            )
            assert (answer.message.content, answer.finish_reason) == (
                turns["messages"][-1]["content"], "stop",
            )  # fmt: skip
