"""``/v1/classify`` answers as ``lorada predict`` does, in vLLM's form."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from servers import Process, running
from trained import train_once

from lorada.data.task_rows import rows_to_answer
from lorada.inference.load import load_run
from lorada.inference.predict import predict
from lorada.inference.serving.api import Server
from lorada.inference.serving.served import open_classifiers

SETTINGS = ["max_steps=3", "learning_rate=0.1", "report_to=[]", "max_length=48"]
SETTINGS += ["eval_batch_size=2", "save_strategy=no"]
RUNS = {
    "mood": ("bert", "lora", "labels", []),
    "topic": ("llama", "lora", "topics", []),
    "same": ("bert", "lora", "pairs", []),
    "grade": ("bert", "lora", "scores", []),
    "quiz": ("llama", "lora", "choices", []),
}
TEXTS = ["a", "bb" * 20, "c d", "e" * 9, "f"]
PAIRS = [{"text": text, "text_pair": text[:4]} for text in TEXTS]
CHOICES = [{"prompt": f"{n}?", "candidates": [" a", " no", " c" * n]} for n in range(1, 6)]
ROW_FILES = {
    "topics": [{"text": "ab" * (i % 3 + 1), "label": i % 3} for i in range(9)],
    "pairs": [{**pair, "label": "yn"[n % 2]} for n, pair in enumerate(PAIRS)],
    "choices": [{**row, "answer": n % 3} for n, row in enumerate(CHOICES)],
}


@pytest.fixture(scope="module")
def url(folder):
    classifiers = open_classifiers([folder(name) for name in RUNS])
    with running(Server({}, classifiers)) as url:
        yield url


def ask(url, path="/v1/classify", **body):
    return httpx2.post(f"{url}{path}", json=body, timeout=60)


def predicted(folder, name, items):
    run = load_run(folder(name))
    given = [{"text": item} if isinstance(item, str) else item for item in items]
    rows = rows_to_answer(given, "rows", run.form, run.labels)
    return run, [answer for part in predict(run, rows) for answer in part]


ASKED = {"mood": TEXTS, "topic": TEXTS, "same": PAIRS, "grade": TEXTS, "quiz": CHOICES}


@pytest.mark.parametrize("name", ASKED)
def test_texts_pairs_and_choices_get_the_answers_of_predict(name, url, folder):
    run, expected = predicted(folder, name, ASKED[name])
    found = ask(url, model=name, input=ASKED[name]).json()
    assert found["id"].startswith("classify-")
    assert (found["object"], found["model"]) == ("list", name)
    assert isinstance(found["created"], int)
    for index, (one, answer) in enumerate(zip(found["data"], expected, strict=True)):
        if name in ("mood", "topic", "same"):
            assert one.pop("probs") == pytest.approx([answer["probs"][x] for x in run.labels])
            assert one == {"index": index, "label": answer["label"], "num_classes": len(run.labels)}
        elif name == "grade":
            assert one == {"index": index, "score": pytest.approx(answer["score"])}
        else:
            right = {"answer": answer["answer"], "candidate": answer["candidate"]}
            assert one == {"index": index, **right}
    (alone,) = ask(url, model=name, input=ASKED[name][0]).json()["data"]
    assert alone["index"] == 0
    listed = httpx2.get(f"{url}/v1/models").json()["data"]
    assert [one["id"] for one in listed] == list(RUNS)
    written = ask(url, "/v1/completions", model=name, prompt="a").json()["error"]["message"]
    assert written == f"{name} does not answer here: ask /v1/classify"


def test_requests_at_one_time_get_their_own_answers(url, folder):
    _, expected = predicted(folder, "mood", TEXTS)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda text: ask(url, model="mood", input=text).json(), TEXTS * 3))
    for one, answer in zip(found, expected * 3, strict=True):
        assert one["data"][0]["probs"] == pytest.approx(list(answer["probs"].values()), rel=1e-4)


REFUSED = {
    "another name": ({"model": "no"}, 404, "no model 'no' here; there are mood, topic, same"),
    "no input": ({"input": []}, 400, "List should have at least 1 item"),
    "a number": ({"input": ["a", {"text": 5}]}, 400, "input row 2: text is not a text: 5"),
    "too long": ({"input": ["a", "b" * 49]}, 400, "input row 2 is longer than the 48 tokens that"),
    "no token": ({"input": ["a", ""]}, 400, "input row 2 has no token of this model"),
    "a choice": ({"input": CHOICES[0]}, 400, "row 1 has fields prompt, candidates; each needs"),
    "half a pair": ({"model": "same", "input": "a"}, 400, "input row 1 has no text_pair, and this"),
    "a long candidate": (
        {"model": "quiz", "input": {"prompt": "a" * 40, "candidates": ["a", "b" * 40]}},
        400, "input row 1 is longer than the 48 tokens that are read here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused_in_one_line(case, url):
    body, status, message = REFUSED[case]
    found = ask(url, **{"model": "mood", "input": "a", **body})
    assert found.status_code == status
    assert message in found.json()["error"]["message"]


def test_the_command_serves_classes_scores_and_choices(folder, place, mistake):
    server = Process(folder("mood"), folder("grade"), folder("quiz"))
    try:
        found = server.asked("/v1/classify", {"model": "mood", "input": "a"})
        assert found["data"][0]["label"] in ("n", "y")
        found = server.asked("/v1/classify", {"model": "grade", "input": "a"})
        assert isinstance(found["data"][0]["score"], float)
        found = server.asked("/v1/classify", {"model": "quiz", "input": CHOICES[0]})
        (chosen,) = found["data"]
        assert chosen["candidate"] == CHOICES[0]["candidates"][chosen["answer"]]
        said = "".join(server.said)
        assert "mood: lora, labels texts n, y at /v1/classify" in said
        assert "grade: lora, scores texts at /v1/classify" in said
        assert "quiz: lora, chooses among candidates at /v1/classify" in said
    finally:
        server.process.kill()
        server.process.wait()
    writer = train_once(place, "writer", {"writer": ("llama", "lora", "rows", [])}, SETTINGS)
    line = mistake("serve", folder("mood"), writer)
    assert f"mood labels, scores or chooses and {writer} writes text: serve each alone" in line
