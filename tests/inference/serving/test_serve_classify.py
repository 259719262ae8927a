"""``/v1/classify`` answers as ``lorada predict`` does, in vLLM's form."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import run_place
from servers import Process, running

from lorada.inference.load import load_run
from lorada.inference.predict import predict
from lorada.inference.serving.app import Server
from lorada.inference.serving.requests import Limits
from lorada.inference.serving.served import open_classifiers
from lorada.runs.data.rows import rows_to_answer

place = run_place.place

SETTINGS = ["max_steps=3", "learning_rate=0.1", "report_to=[]", "max_length=48"]
SETTINGS += ["eval_batch_size=2", "save_strategy=no"]
RUNS = {
    "mood": ("bert", "lora", "labels", []),
    "topic": ("llama", "lora", "topics", []),
}
ROW_FILES = {"topics": [{"text": "ab" * (i % 3 + 1), "label": i % 3} for i in range(9)]}
TEXTS = ["a", "bb" * 20, "c d", "e" * 9, "f"]


@pytest.fixture(scope="module")
def url(folder):
    classifiers = open_classifiers([folder("mood"), folder("topic")])
    with running(Server({}, Limits(requests=20), classifiers)) as found:
        yield found.url


def ask(url, path="/v1/classify", **body):
    return httpx2.post(f"{url}{path}", json=body, timeout=60)


def predicted(folder, name, texts):
    run = load_run(folder(name))
    rows = rows_to_answer([{"text": text} for text in texts], "rows", run.form, run.labels)
    return run, [answer for part in predict(run, rows) for answer in part]


@pytest.mark.parametrize("name", ["mood", "topic"])
def test_texts_get_the_labels_of_predict(name, url, folder):
    run, expected = predicted(folder, name, TEXTS)
    found = ask(url, model=name, input=TEXTS).json()
    assert found["id"].startswith("classify-")
    assert (found["object"], found["model"]) == ("list", name)
    assert isinstance(found["created"], int)
    assert [one["index"] for one in found["data"]] == list(range(len(TEXTS)))
    for one, answer in zip(found["data"], expected, strict=True):
        assert one["label"] == answer["label"]
        assert one["num_classes"] == len(run.labels)
        assert one["probs"] == pytest.approx([answer["probs"][label] for label in run.labels])
    read = sum(len(ids) for ids in run.tokenizer(TEXTS)["input_ids"])
    usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
    assert found["usage"] == usage


def test_one_text_is_a_list_of_one_at_vllms_own_address_too(url):
    alone = ask(url, model="mood", input=TEXTS[0]).json()["data"]
    assert alone == ask(url, "/classify", model="mood", input=[TEXTS[0]]).json()["data"]


def test_requests_at_one_time_get_their_own_answers(url, folder):
    _, expected = predicted(folder, "mood", TEXTS)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda text: ask(url, model="mood", input=text).json(), TEXTS * 3))
    for one, answer in zip(found, expected * 3, strict=True):
        assert one["data"][0]["probs"] == pytest.approx(list(answer["probs"].values()), rel=1e-4)


def test_the_list_of_models_names_classifiers(url):
    listed = httpx2.get(f"{url}/v1/models").json()["data"]
    assert [(one["id"], one["method"]) for one in listed] == [("mood", "lora"), ("topic", "lora")]
    assert httpx2.get(f"{url}/v1/models/topic").json()["id"] == "topic"
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}


MUST = "input: must be a text, or a list of 1 to 256; it is "
REFUSED = {
    "another name": ({"model": "no"}, 404, "no model 'no' here; there are mood, topic"),
    "no input": ({"input": []}, 400, f"{MUST}[]"),
    "too long": ({"input": ["a", "b" * 49]}, 400, "input 1 has 49 tokens; there is"),
    "no token": ({"input": ["a", ""]}, 400, "input 1 has no token of this model"),
    "too many": ({"input": ["a"] * 21}, 400, "21 prompts are more than this server"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused_in_one_line(case, url):
    body, status, message = REFUSED[case]
    found = ask(url, **{"model": "mood", "input": "a", **body})
    assert found.status_code == status
    assert message in found.json()["error"]["message"]


def test_a_classifier_writes_no_text(url):
    found = ask(url, "/v1/completions", model="mood", prompt="a")
    assert found.status_code == 400
    assert found.json()["error"]["message"] == "mood does not answer here: ask /v1/classify"


def test_the_command_serves_classifiers(folder):
    server = Process(folder("mood"))
    try:
        found = server.asked("/v1/classify", {"model": "mood", "input": "a"})
        assert found["data"][0]["label"] in ("n", "y")
        assert "mood: lora, labels texts n, y at /v1/classify" in "".join(server.said)
    finally:
        server.process.kill()
        server.process.wait()
