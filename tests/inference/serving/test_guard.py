"""The guard: what it passes on, and that no error ends a connection."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from folders import CHAT, byte_tokenizer
from transformers import GenerationConfig, LlamaConfig

from lorada.inference.serving.guard import Guard
from lorada.inference.serving.served_models import ServedModels

ASKED = {"prompt": "hi"}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


class Manager:
    """A ``ModelManager`` of models without weights."""

    def __init__(self):
        self.tokenizer, self.loaded, self.force_model = byte_tokenizer(), [], "run"

    def load_model_and_processor(self, name):
        config = LlamaConfig(vocab_size=260, max_position_embeddings=40)
        self.loaded.append(name)
        return SimpleNamespace(config=config, generation_config=GenerationConfig()), self.tokenizer

    def get_model_modality(self, model, processor):
        from transformers.cli.serving.utils import Modality

        return Modality.LLM


@pytest.fixture
def manager():
    return Manager()


@pytest.fixture
def ask(manager):
    """Ask a server that answers with the request as it comes behind the guard."""
    seen = []

    async def server(scope, receive, send):
        seen.append(json.loads((await receive())["body"]))
        if "seed" in seen[-1]:
            raise RuntimeError("no such seed")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(seen[-1]).encode()})

    guard = Guard(server, ServedModels(manager, "run", "run-base", 30, {}))

    def request(path, body, method="POST"):
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        data, sent = body if isinstance(body, bytes) else json.dumps(body).encode(), []

        async def receive():
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(guard(scope, receive, send))
        return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent))

    return request


def test_both_models_have_a_name_and_the_base_is_loaded_when_it_is_asked(ask, manager):
    status, listed = ask("/v1/models", b"", "GET")
    assert (status, [one["id"] for one in listed["data"]]) == (200, ["run", "run-base"])
    assert manager.loaded == ["run"]
    assert ask(COMPLETIONS, ASKED)[1]["model"] == "run"
    assert ask(COMPLETIONS, {**ASKED, "model": "run-base"})[1]["model"] == "run-base"
    assert manager.loaded[-1] == "run-base"
    for path in (COMPLETIONS, "/load_model"):
        status, answer = ask(path, {**ASKED, "model": "gpt2"})
        assert (status, answer["error"]["param"]) == (404, "model")


def test_an_answer_is_never_longer_than_the_limit_and_the_context(ask):
    assert ask(COMPLETIONS, ASKED)[1]["max_tokens"] == 30  # the limit
    assert ask(COMPLETIONS, {"prompt": 15 * "x"})[1]["max_tokens"] == 25  # of 40 that are read
    settings = {"generation_config": '{"max_new_tokens": 7}'}
    assert ask(COMPLETIONS, {**ASKED, **settings})[1]["max_tokens"] == 7
    both = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert ask(CHATS, both)[1]["max_completion_tokens"] == 3
    for wrong in ({"max_tokens": 10**9}, {"prompt": 15 * "x", "max_tokens": 26}):
        status, answer = ask(COMPLETIONS, {**ASKED, **wrong})
        assert (status, answer["error"]["param"]) == (400, "max_tokens")
    status, answer = ask(COMPLETIONS, {"prompt": 40 * "x"})
    assert (status, answer["error"]["param"]) == (400, "prompt")


def test_what_the_template_does_not_take_is_refused(ask, manager):
    image = {"type": "image_url", "image_url": {"url": "x"}}
    wrong = {"role": "user", "content": [{"type": "text", "text": "hi"}, image]}
    manager.tokenizer.chat_template = (
        CHAT + "{% if not messages[0].content %}{{ 1 / 0 }}{% endif %}"
    )
    for turn in (wrong, {"role": "user", "content": ""}):
        status, answer = ask(CHATS, {"messages": [turn]})
        assert (status, answer["error"]["param"]) == (400, "messages")
    manager.tokenizer.chat_template = None
    status, answer = ask(CHATS, {"messages": [{"role": "user", "content": "hi"}]})
    assert "ask it at /v1/completions" in answer["error"]["message"]
    bias = {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {"260": 1}}
    assert ask(CHATS, bias)[1]["error"]["param"] == "logit_bias"


def test_an_error_of_the_server_is_an_answer_and_goes_no_further(ask, caplog):
    status, answer = ask(COMPLETIONS, {**ASKED, "seed": 1})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert answer["error"]["message"] == "no such seed"
    assert "RuntimeError" in caplog.text
    status, answer = ask(COMPLETIONS, {**ASKED, "seed": 1, "generation_config": "{}"})
    assert (status, answer["error"]["param"]) == (400, "generation_config")
    assert ask(COMPLETIONS, ASKED)[0] == 200
    assert ask("/reset", {})[0] == 404
