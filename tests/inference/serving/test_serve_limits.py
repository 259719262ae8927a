"""The server's limits, each with its HTTP status, and what becomes of requests that are cut off."""

import http.client
import json
import logging
import socket
from unittest.mock import Mock

import httpx2
import pytest
from programs import until
from servers import running, trained

from lorada.inference.serving import api
from lorada.inference.serving.api import Server
from lorada.inference.serving.served import open_served

BASE = "llama"
LONG = {"model": BASE, "prompt": "9", "max_tokens": 500}
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served([trained(tmp_path_factory.mktemp("limits"), "lora")])


@pytest.fixture(scope="module")
def usual(served):
    with running(Server(served)) as url:
        yield url


def ask(url, body, path=COMPLETE, **options):
    return httpx2.post(url + path, json=body, timeout=60, **options)


def said(response, status):
    """The one line of a refusal."""
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "\n" not in error["message"]
    return error["message"]


REFUSED = {
    "half a character": (b'{"prompt": "\\ud800"}', "unexpected end of hex escape"),
    "an empty prompt": ({"prompt": ""}, "the prompt is empty"),
    "an unknown token": ({"prompt": [5, 10**6]}, "1000000 is no token of this model"),
    "too many tokens": ({"max_tokens": 512}, "a prompt of 1 tokens and an answer of 512 does not"),
    "a long prompt": ({"prompt": "a" * 512}, "a prompt of 512 tokens does not fit: there is room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_in_one_line(case, usual):
    body, text = REFUSED[case]
    if isinstance(body, dict):
        body = json.dumps({"model": BASE, "prompt": "a", **body})
    message = said(httpx2.post(usual + COMPLETE, content=body, timeout=60), 400)
    assert text in message
    assert len(message) < 1000


def test_a_tokenizer_without_a_chat_template_is_said(usual, served, monkeypatch):
    monkeypatch.setattr(served["lora"].run.tokenizer, "chat_template", None)
    body = {"model": "lora", "messages": [{"role": "user", "content": "a"}]}
    assert said(ask(usual, body, CHAT), 400) == ("lora has no chat template: ask /v1/completions")


def test_unknown_models_addresses_and_methods_are_refused(usual):
    unknown = said(ask(usual, {**LONG, "model": "gpt"}), 404)
    assert unknown == "no model 'gpt' here; there are lora, llama"
    assert "Not Found" in said(httpx2.get(usual + "/v1/nothing"), 404)
    assert "Method Not Allowed" in said(httpx2.get(usual + COMPLETE), 405)


def test_a_key_is_asked_for_where_there_is_one(served):
    with running(Server(served, key="s3cret")) as url:
        for wrong in (None, "Bearer wrong", "s3cret", "Bearer S3CRET", "Basic s3cret"):
            headers = {"Authorization": wrong} if wrong else {}
            assert "no valid API key" in said(ask(url, LONG, headers=headers), 401)
            assert said(httpx2.get(url + "/v1/models", headers=headers), 401)
        for scheme in ("bearer", "BEARER", "Bearer "):
            found_so = {"Authorization": f"{scheme} s3cret"}
            assert httpx2.get(url + "/v1/models", headers=found_so).status_code == 200
        right = {"Authorization": "Bearer s3cret"}
        assert ask(url, {**LONG, "max_tokens": 2}, headers=right).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cut_off_frees_its_place(stream, served):
    with running(Server(served)) as url:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("POST", COMPLETE, json.dumps({**LONG, "stream": stream}))
        if stream:
            connection.getresponse().read(1)
        until(lambda: at_work(served))
        connection.close()
        if stream:
            connection.sock = None
        until(lambda: not at_work(served))
        assert not any(one.output_router.result_handlers for one in served[BASE].batches.values())
        until(lambda: ask(url, {**LONG, "max_tokens": 1}).status_code == 200)


def test_a_client_that_leaves_before_its_request_is_sent_is_no_fault(usual, caplog):
    host, port = usual.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"
        client.sendall(head)
    assert httpx2.get(usual + "/v1/models").status_code == 200
    assert not caplog.records


def at_work(served) -> int:
    """How many requests are in the batches of the base."""
    processors = [batch.batch_processor for batch in served[BASE].batches.values()]
    return sum(len(one.scheduler.active_requests) for one in processors if one)


def test_a_batch_that_died_is_made_anew_and_has_a_line_in_the_log(served, monkeypatch, caplog):
    with running(Server(served)) as url:
        assert ask(url, {**LONG, "max_tokens": 2}).status_code == 200
        base = served[BASE].view._shared.base
        kept = base.forward

        broken = Mock(side_effect=RuntimeError("a card fell off the bus"))
        monkeypatch.setattr(base, "forward", broken)
        caplog.clear()
        assert "the model failed at this answer" in said(ask(url, LONG), 503)
        until(lambda: not served[BASE].batches[False].is_running())
        lines = [one.getMessage() for one in caplog.records if one.name.startswith("lorada.")]
        assert lines == ["a request failed: a card fell off the bus"]
        monkeypatch.setattr(base, "forward", kept)
        assert ask(url, {**LONG, "max_tokens": 2}).status_code == 200


def test_a_fault_of_the_server_is_in_its_log_only(usual, monkeypatch, caplog):
    uvicorn = logging.getLogger("uvicorn.error")  # its lines do not propagate
    uvicorn.addHandler(caplog.handler)
    try:
        monkeypatch.setattr(api, "ask_of", Mock(side_effect=KeyError("s3cret path")))
        assert said(ask(usual, LONG), 500) == "the server failed at this answer"
        until(lambda: caplog.records)
    finally:
        uvicorn.removeHandler(caplog.handler)
    faults = [one for one in caplog.records if one.levelname == "ERROR"]
    assert all(isinstance(one.exc_info[1], KeyError) for one in faults)
    monkeypatch.undo()
    assert ask(usual, {**LONG, "max_tokens": 2}).status_code == 200
