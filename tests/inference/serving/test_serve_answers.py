"""The server answers as ``lorada generate`` does, whole and streamed, for each run and the base."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from folders import refused
from servers import client_of, running, trained

from lorada.inference.generate import continue_prompts, generate
from lorada.inference.load import load_run
from lorada.inference.serving import served
from lorada.inference.serving.api import Server
from lorada.inference.serving.served import open_served

TOGETHER = ("mine.v1", "talk", "lora", "bottleneck", "prefix")
QUESTION = "1 + 1 ="
BASE = "llama"
# The smallest number, which is 0 in fp32, and one whose quotients are infinite there.
COLD = (5e-324, 1e-40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def url(place):
    """A server of several runs on one base."""
    with running(Server(open_served([trained(place, name) for name in TOGETHER]))) as url:
        yield url


@pytest.fixture
def client(url):
    return client_of(url)


def alone(place, name, prompt=QUESTION, **options):
    """What ``lorada generate`` writes."""
    return continue_prompts(load_run(trained(place, name)), [prompt], **options)[0]


def complete(client, name, prompt=QUESTION, **options):
    options = {"max_tokens": 9, **options}  # as long as those of ``lorada generate``: SETTINGS
    return client.completions.create(model=name, prompt=prompt, **options).choices[0].text


def chat(client, name, text=QUESTION, **options):
    turns, options = [{"role": "user", "content": text}], {"max_tokens": 9, **options}
    return client.chat.completions.create(model=name, messages=turns, **options).choices[0]


@pytest.mark.parametrize("name", TOGETHER)
def test_an_answer_is_what_generate_writes(name, client, place):
    own = chat(client, name).message.content if name == "talk" else complete(client, name)
    assert own == alone(place, name)
    assert own != complete(client, BASE)


def test_the_base_answers_under_its_own_name(client, place):
    run = load_run(trained(place, "lora"))
    with run.model.disable_adapter():
        assert complete(client, BASE) == generate(run, [QUESTION])[0]


@pytest.mark.parametrize(
    ("name", "why"), [("beams", "it generates with num_beams=3"), ("seq2seq", "encoder–decoder")]
)
def test_a_run_that_no_batch_can_answer_is_refused_in_one_line(name, why, place):
    message = f"{name} cannot be served, as .*{why}: lorada generate and lorada chat answer it$"
    refused(message, lambda: open_served([trained(place, name)]))


def test_a_fully_trained_run_is_served_under_one_name(place):
    with running(Server(open_served([trained(place, "whole")]))) as url:
        client = client_of(url)
        assert [model.id for model in client.models.list()] == ["whole"]
        assert complete(client, "whole") == alone(place, "whole")


def test_the_pieces_of_a_stream_are_the_answer(client):
    parts = list(
        client.completions.create(
            model=BASE, prompt=QUESTION, stream=True, max_tokens=60,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    *parts, last = parts
    assert last.choices == []
    assert last.usage.prompt_tokens == len(QUESTION)
    assert len(parts) > 1
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices[0].finish_reason in ("stop", "length")
    text = "".join(part.choices[0].text for part in parts)
    assert text == complete(client, BASE, max_tokens=60)


def test_the_pieces_of_a_chat_are_the_answer(client):
    turns = [{"role": "user", "content": "hi"}]
    parts = client.chat.completions.create(
        model="talk", messages=turns, stream=True, max_completion_tokens=9
    )
    first, *rest = (part.choices[0].delta for part in parts)
    assert first.role == "assistant"
    text = "".join(delta.content or "" for delta in rest)
    assert text == chat(client, "talk", "hi").message.content


def test_an_answer_ends_where_it_is_told_to(client):
    whole = complete(client, BASE, max_tokens=60)
    assert len(complete(client, BASE, max_tokens=2)) < len(whole)
    known = next(c for c in whole[3:] if c.isascii() and c.isprintable())
    for stream in (False, True):
        stops = [known, *(f"never {n}" for n in range(9))]  # more than OpenAI takes, as lm-eval's
        found = client.completions.create(
            model=BASE, prompt=QUESTION, max_tokens=60, stop=stops, stream=stream
        )
        parts = list(found) if stream else [found]
        assert "".join(part.choices[0].text for part in parts) == whole[: whole.index(known)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_prompt_may_be_its_tokens(client, place):
    ids = load_run(trained(place, "mine.v1")).tokenizer(QUESTION)["input_ids"]
    assert complete(client, "mine.v1", ids) == alone(place, "mine.v1")


def test_sampling_draws_and_a_tiny_share_or_temperature_draws_the_likeliest(client):
    drawn = {complete(client, "lora", temperature=1.5, max_tokens=20) for _ in range(4)}
    assert len(drawn) > 1
    greedy = complete(client, "lora", max_tokens=20)
    nearly = [{"temperature": 1.5, "top_p": share} for share in (1e-6, 5e-324)]
    for options in [*nearly, *({"temperature": cold} for cold in COLD)]:
        assert complete(client, "lora", **options, max_tokens=20) == greedy


def test_answers_asked_for_together_are_those_asked_for_alone(place, monkeypatch):
    """100 requests of mixed lengths and models, 16 at a time, in a cache that holds few of them."""
    monkeypatch.setattr(served, "CACHE_TOKENS", 512)
    folders = [trained(place, name) for name in TOGETHER]
    with running(Server(open_served(folders))) as url:
        client = client_of(url)
        names = [*TOGETHER, BASE]
        asked = [
            (names[i % len(names)], f"{i % 17} + {i} = " + "ab " * (i % 23), 3 + i * 7 % 40)
            for i in range(100)
        ]

        def ask(request):
            name, prompt, most = request
            return complete(client, name, prompt, max_tokens=most)

        one_by_one = {request: ask(request) for request in asked[::3]}
        with ThreadPoolExecutor(16) as pool:
            together = dict(zip(asked, pool.map(ask, asked), strict=True))
        for request, text in one_by_one.items():
            assert together[request] == text
        runs = {name: load_run(trained(place, name)) for name in TOGETHER}
        for (name, prompt, most), text in list(together.items())[::10]:
            if name != BASE:
                assert text == generate(runs[name], [prompt], max_new_tokens=most)[0]


def test_an_answer_without_a_length_goes_to_the_end_of_the_context(client):
    found = client.completions.create(model=BASE, prompt="9")
    assert found.choices[0].finish_reason == "length"
    assert found.usage.total_tokens == 512  # of the model, where lorada generate writes 9
