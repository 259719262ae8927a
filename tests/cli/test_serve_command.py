"""``lorada serve`` as a process: asked with curl, and told to stop."""

import signal
import socket
import sys

import pytest
from servers import Process, trained

from lorada.inference.generate import continue_prompts
from lorada.inference.load import load_run

QUESTION = "1 + 1 ="


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("served runs")
    return [trained(place, name) for name in ("mine.v1", "talk")]


@pytest.fixture
def started(runs):
    processes = []

    def start(*words):
        processes.append(Process(*words, *runs))
        return processes[-1]

    yield start
    for process in processes:
        process.process.kill()
        process.process.wait()


def test_a_server_answers_curl_and_ends_when_running_requests_have(started, runs):
    server = started("--api-key", "s3cret")
    key = ("-H", "Authorization: Bearer s3cret")
    assert server.asked("/v1/models")["error"]["code"] == "invalid_api_key"
    listed = [model["id"] for model in server.asked("/v1/models", None, *key)["data"]]
    assert listed == ["mine.v1", "talk", "llama"]
    asked = {"model": "mine.v1", "prompt": QUESTION}
    answer = server.asked("/v1/completions", asked, *key)
    assert answer["choices"][0]["text"] == continue_prompts(load_run(runs[0]), [QUESTION])[0]

    long = {"model": "llama", "prompt": "9", "max_tokens": 500, "stream": True}
    running = server.curl("/v1/completions", long, *key)
    assert running.stdout.readline().startswith("data: {")
    server.process.send_signal(signal.SIGTERM)
    rest = running.communicate()[0]
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"finish_reason": "length"' in rest
    assert server.process.wait(timeout=60) == 0
    assert server.process.stdout.read() == ""
    said = "".join(server.said)
    assert "mine.v1: lorada_la\n" in said
    assert "llama: the base alone\n" in said
    assert said.count('"POST /v1/completions HTTP/1.1" 200') == 2
    assert QUESTION not in said
    assert "Traceback" not in said


def test_an_address_that_is_taken_is_refused_before_a_model_is_loaded(mistake, runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = mistake("serve", runs[0], "--port", port)
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use; choose another" in line
    line = mistake("serve", runs[0], "--host", "no.such.host.invalid")
    assert "cannot listen at no.such.host.invalid port 8000" in line


def test_a_missing_extra_is_named(mistake, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "uvicorn is missing: install the extra `serve`" in mistake("serve", runs[0])
