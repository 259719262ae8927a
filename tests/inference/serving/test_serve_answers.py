"""The server answers as ``lorada generate`` does, whole and streamed, for each run and the base."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import openai
import pytest
import torch
from folders import refused
from servers import running, trained

from lorada.inference.generate import continue_prompts, generate
from lorada.inference.load import load_run
from lorada.inference.serving.api import Server
from lorada.inference.serving.served import Draw, open_served

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
    served = open_served([trained(place, name) for name in TOGETHER])
    with running(Server(served)) as found:
        yield found.url


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


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
    served = open_served([trained(place, "whole")])
    with running(Server(served)) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
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


def test_prompts_of_one_request_are_answered_each(client, place):
    prompts = [QUESTION, "2", "33 + 4 ="]
    found = client.completions.create(model="mine.v1", prompt=prompts, max_tokens=9)
    texts = [choice.text for choice in sorted(found.choices, key=lambda choice: choice.index)]
    assert texts == [alone(place, "mine.v1", prompt) for prompt in prompts]
    run = load_run(trained(place, "mine.v1"))
    ids = run.tokenizer(prompts)["input_ids"]
    by_ids = client.completions.create(model="mine.v1", prompt=ids, max_tokens=9)
    assert [choice.text for choice in by_ids.choices] == texts


def test_sampling_draws_and_a_tiny_share_draws_the_likeliest(client):
    drawn = {complete(client, "lora", temperature=1.5, max_tokens=20) for _ in range(4)}
    assert len(drawn) > 1
    greedy = complete(client, "lora", max_tokens=20)
    for share in (1e-6, 5e-324):
        assert complete(client, "lora", temperature=1.5, top_p=share, max_tokens=20) == greedy


@pytest.mark.parametrize("cold", COLD)
def test_a_temperature_near_zero_draws_the_likeliest_and_harms_no_other_request(cold, client):
    options = {"temperature": cold, "max_tokens": 20}
    other = client.completions.create(
        model="talk", prompt=QUESTION, stream=True, temperature=1.5, max_tokens=100
    )
    begun = next(iter(other))
    assert complete(client, "talk", **options) == complete(client, "talk", max_tokens=20)
    *_, last = [begun, *other]
    assert last.choices[0].finish_reason in ("stop", "length")


def test_answers_asked_for_together_are_those_asked_for_alone(place):
    """100 requests of mixed lengths and models, 16 at a time, in a cache that holds few of them."""
    folders = [trained(place, name) for name in TOGETHER]
    with running(Server(open_served(folders, cache_tokens=512))) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
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


def test_models_are_listed(client, url):
    assert [model.id for model in client.models.list()] == [*TOGETHER, BASE]
    assert client.models.retrieve("mine.v1").id == "mine.v1"
    listed = httpx2.get(f"{url}/v1/models").json()["data"]
    assert listed[0]["method"] == "lorada_la"
    assert {model["base"] for model in listed} == {BASE}
    assert "/" not in json.dumps(listed)  # no folder of the server


def test_an_answer_without_a_length_goes_to_the_end_of_the_context(client, place):
    found = client.completions.create(model=BASE, prompt="9")
    assert found.choices[0].finish_reason == "length"
    assert found.usage.total_tokens == 512  # of the model, where lorada generate writes 9
    with running(Server(open_served([trained(place, "lora")]), tokens=4)) as short:
        client = openai.OpenAI(base_url=f"{short.url}/v1", api_key="none", max_retries=0)
        assert client.completions.create(model=BASE, prompt="9").usage.completion_tokens == 4


def test_the_same_seed_draws_the_same_answer_whatever_else_the_batch_answers(place):
    """The cache holds few requests, so that some lose their place and begin anew."""
    with running(Server(open_served([trained(place, "lora")], cache_tokens=256))) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)

        def draw(seed, prompt=QUESTION):
            return complete(client, BASE, prompt, seed=seed, temperature=1.5, max_tokens=60)

        alone = [draw(seed) for seed in range(8)]
        assert len(set(alone)) == 8
        with ThreadPoolExecutor(16) as pool:
            others = [pool.submit(draw, None, "ab " * n) for n in range(1, 9)]
            assert list(pool.map(draw, range(8))) == alone
            assert len({other.result() for other in others}) == 8
        assert draw(3, [QUESTION]) == alone[3]
        assert len({draw(None) for _ in range(3)}) == 3
        several = client.completions.create(
            model=BASE, prompt=[QUESTION] * 3, temperature=1.5, max_tokens=60
        )
        assert len({choice.text for choice in several.choices}) == 3


def test_what_is_drawn_has_the_probabilities_of_the_model():
    """Of 20,000 draws from known probabilities; three standard deviations."""
    shares = torch.tensor([0.5, 0.0, 0.2, 0.3])
    states = [
        SimpleNamespace(logit_processor_kwargs={"seed": seed}, position_offset=at)
        for seed in range(200) for at in range(100)
    ]  # fmt: skip
    argument = Draw().prepare_tensor_args([SimpleNamespace(state=state) for state in states])
    scores = Draw()(shares.log().expand(len(states), -1), argument)
    drawn = scores.softmax(-1)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    spread = (shares * (1 - shares) / len(states)).sqrt()
    assert ((drawn.mean(0) - shares).abs() <= 3 * spread).all()
