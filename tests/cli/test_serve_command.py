"""``lorada serve``: transformers' server answers as ``lorada generate`` does."""

import json
import re
import sys

import pytest
from folders import TURNS, bart_folder, llama_folder, rows_file
from servers import Process
from trained_runs import train_once
from transformers import GenerationConfig

from lorada.inference.generate import generate
from lorada.inference.load import load_run, scoring

SETTINGS = ["max_steps=2", "learning_rate=0.1", "report_to=[]", "max_length=48", "max_new_tokens=9"]
# Run → model, method, rows, and settings of its own.
RUNS = {
    "talk": ("llama", "lorada_la", "turns", ["lmam.init_weights=false"]),
    "seq2seq": ("bart", "lora", "rows", []),
}
QUESTION = "1 + 1 ="


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served runs")
    llama_folder(place / "llama", max_position_embeddings=512)
    draws = GenerationConfig(do_sample=True, temperature=0.9, eos_token_id=2)
    draws.save_pretrained(place / "llama")
    bart_folder(place / "bart")
    rows_file(place / "rows.jsonl")
    rows_file(place / "turns.jsonl", TURNS)
    return lambda name: train_once(place, name, RUNS, SETTINGS)


@pytest.mark.more
def test_a_served_run_answers_as_generate_does_and_is_written_once(folder):
    run = folder("talk")
    loaded = load_run(run)
    expected = generate(loaded, [QUESTION])[0]
    with scoring(loaded, base=True):
        base = generate(loaded, [QUESTION])[0]
    turns = {"model": "talk", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 9}
    written = run / ".served" / "talk" / "model.safetensors"
    times = []
    for _ in range(2):
        server = Process(run, "--max-tokens", 20)
        try:
            names = [one["id"] for one in server.asked("/v1/models")["data"]]
            assert names == ["talk", "talk-base"]
            (choice,) = server.asked("/v1/chat/completions", turns)["choices"]
            assert choice["message"]["content"] == expected
            stream = server.asked("/v1/chat/completions", {**turns, "stream": True})
            hot = {"model": "talk", "prompt": QUESTION, "max_tokens": 20, "temperature": 1.5}
            each = [server.asked("/v1/completions", hot)["choices"][0]["text"] for _ in range(3)]
            assert len(set(each)) > 1
            stop = {**turns, "stop": [expected[-1]]}
            (choice,) = server.asked("/v1/chat/completions", stop)["choices"]
            assert choice["message"]["content"] == expected[: expected.index(expected[-1])]
            (choice,) = server.asked("/v1/chat/completions", {**turns, "model": "talk-base"})[
                "choices"
            ]
            assert choice["message"]["content"] == base
            for wrong in ({"max_tokens": 21}, {"max_tokens": -1}, {"messages": []}, {"n": 2}):
                status, answer = server.refused("/v1/chat/completions", {**turns, **wrong})
                assert (status, [answer["error"]["param"]]) == (400, [*wrong])
        finally:
            server.end()
        parts = [json.loads(line) for line in re.findall(r"data: ({.*})", stream)]
        deltas = [choice["delta"] for part in parts for choice in part["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == expected
        assert "Traceback" not in server.said
        times.append(written.stat().st_mtime_ns)
    assert times[0] == times[1]


@pytest.mark.more
def test_what_the_server_cannot_answer_with_is_refused(folder, mistake, monkeypatch):
    assert "bart is no decoder, and transformers' server" in mistake("serve", folder("seq2seq"))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = mistake("serve", folder("talk"))
    assert "uvicorn is missing: install the extra `serve`" in line
