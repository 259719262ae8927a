"""Whatever comes, the server lives on, answers with a status, and forgets it afterwards."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Process, running, trained
from test_serve_mistakes import WRONG

from lorada.inference.serving import served
from lorada.inference.serving.api import Server
from lorada.inference.serving.requests import (
    NOT_OFFERED,
    ChatRequest,
    CompletionRequest,
)

BASE = "llama"
STATUSES = {200, 400, 404}
RIGHT = {
    "/v1/completions": {"model": BASE, "prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {
        "model": BASE, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2
    },
}  # fmt: skip
FIELDS = {
    "/v1/completions": sorted([*CompletionRequest.model_fields, *NOT_OFFERED]),
    "/v1/chat/completions": sorted([*ChatRequest.model_fields, *NOT_OFFERED]),
}

anything = st.none() | st.sampled_from([*WRONG, BASE, "lora", 1, 2**63]) | st.text(max_size=30)


@st.composite
def requests(draw):
    """An address and a body: a right one with some fields changed, taken out or added; or bytes."""
    path = draw(st.sampled_from(list(RIGHT)))
    if draw(st.integers(0, 9)) == 0:
        return path, draw(st.binary(max_size=200))
    body = dict(RIGHT[path])
    for field in draw(st.lists(st.sampled_from(FIELDS[path]), min_size=1, max_size=3)):
        body[field] = draw(anything)
    for field in draw(st.lists(st.sampled_from(sorted(body)), max_size=1)):
        del body[field]
    text = json.dumps(body).encode()
    return path, text[: draw(st.sampled_from([len(text), len(text), len(text), 20]))]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "CACHE_TOKENS", 64)  # so that no answer is long
        names = served.open_served([trained(tmp_path_factory.mktemp("broken"), "lora")])
    with running(Server(names)) as found:
        yield found


def test_broken_requests_do_not_end_the_server(found):
    counts, examples = {}, 100

    @given(requests())
    @hypothesis.settings(max_examples=examples, deadline=None, database=None)
    def send(request):
        path, body = request
        answer = client.post(found.url + path, content=body)
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        assert answer.status_code in STATUSES, answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    with httpx2.Client(timeout=60) as client:
        send()
        assert counts[400] > examples / 3
        assert counts[200] > examples / 50  # some changes break nothing
        assert client.get(found.url + "/health").json() == {"status": "ok"}
        answer = client.post(found.url + "/v1/completions", json=RIGHT["/v1/completions"])
        assert answer.status_code == 200


def work(url: str, count: int, numbers) -> None:
    """Requests of mixed lengths and kinds, 16 at a time; every fifth stream is cut off."""

    def ask(number):
        body = {
            "model": (BASE, "lora")[number % 2], "prompt": "ab " * (number % 60 + 1),
            "max_tokens": number % 8 + 1, "stream": number % 3 == 0,
        }  # fmt: skip
        with client.stream("POST", url + "/v1/completions", json=body) as answer:
            if number % 5:
                answer.read()
        assert answer.status_code == 200

    with httpx2.Client(timeout=60) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, itertools.islice(numbers, count)))


def test_memory_does_not_grow(tmp_path):
    """The limit leaves room for what allocators keep: more in the first hundreds than later."""
    numbers, requests = itertools.count(), 600
    server = Process(trained(tmp_path, "lora"))
    try:
        work(server.address, 100, numbers)
        before = server.resident
        work(server.address, requests, numbers)
        grown = server.resident - before
    finally:
        server.process.terminate()
    assert grown < 2**20 * 2
