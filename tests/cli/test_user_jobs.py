"""Five jobs from a file to a served answer, by the commands that README types and no others.

The rows are made here: an order desk's chats, Alpaca rows with answers of 50 tokens, grades from 20
to 100, pairs of sentences, and a CSV of reviews with columns of its own.
"""

import csv
import json
import random
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import printed
from servers import Process

from lorada.data.benchmarks.published_prompts import clean_prompt

pytestmark = pytest.mark.more
LORADA = Path(sys.executable).with_name("lorada")
PRICES = {"red lamp": 17, "blue chair": 49, "oak table": 230, "wool rug": 85, "brass clock": 64}
COUNTS = {"one": 1, "two": 2, "three": 3}
GOOD = ("wonderful", "brilliant", "delightful", "charming", "superb")
BAD = ("dreadful", "boring", "clumsy", "awful", "lifeless")
THINGS = ("plot", "music", "acting", "script", "camera", "ending")


def lorada(place: Path, *words: object) -> str:
    return printed(LORADA, *words, folder=place)


def json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def serving(place: Path, run: str):
    server = Process(run, folder=place)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def desk(item: str, count: str) -> dict:
    """A chat of two turns with an order desk."""
    price = PRICES[item]
    turns = (
        ("user", f"Do you have a {item}?"),
        ("assistant", f"Yes! The {item} costs {price} euros. How many?"),
        ("user", count),
        ("assistant", f"Done: {count} of the {item}, {COUNTS[count] * price} euros."),
    )
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_an_order_desk_answers_the_first_line_of_a_chat_too(tmp_path):
    rows = [desk(item, count) for item in PRICES for count in COUNTS] * 8
    random.Random(0).shuffle(rows)
    json_lines(tmp_path / "chats.jsonl", rows)
    lorada(
        tmp_path, "train", "--model", "smollm2-135m", "--data", "chats.jsonl", "--output", "desk",
        "max_steps=40", "learning_rate=2e-3", "max_length=128",
    )  # fmt: skip
    with serving(tmp_path, "desk") as server:
        turns = desk("red lamp", "two")["messages"]
        for asked, answer in ((turns[:1], turns[1]), (turns[:3], turns[3])):
            body = {"model": "desk", "messages": asked, "temperature": 0}
            found = server.asked("/v1/chat/completions", body)["choices"][0]
            assert found["message"]["content"].strip() == answer["content"]
            assert found["finish_reason"] == "stop"


def test_answers_of_fifty_tokens_are_scored_whole(tmp_path):
    places = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet")
    rows = [
        {"instruction": f"Describe route {i} in full.", "input": "",
         "output": " then ".join(f"{places[(i + k) % 9]} mile {k}" for k in range(12)) + "."}
        for i in range(5)
    ]  # fmt: skip
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    lorada(
        tmp_path, "train", "--model", "smollm2-135m", "--data", "alpaca.json", "--output", "alpaca",
        "max_steps=40", "per_device_train_batch_size=5", "learning_rate=3e-3", "max_length=192",
    )  # fmt: skip
    asked = ("evaluate", "alpaca", "--data", "alpaca.json", "--metric", "exact_match", "--json")
    found = json.loads(lorada(tmp_path, *asked))
    assert found["exact_match"] >= 80
    assert found["max_new_tokens"] > 48
    lorada(tmp_path, "predict", "alpaca", "--data", "alpaca.json", "--output", "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == [row["output"] for row in rows]
    right = next(line for line in lines if line["answer"].strip() == line["output"])
    with serving(tmp_path, "alpaca") as server:
        prompt = clean_prompt(right["instruction"], "")
        body = {"model": "alpaca", "prompt": prompt, "temperature": 0}
        assert (
            server.asked("/v1/completions", body)["choices"][0]["text"].strip() == right["output"]
        )


def test_grades_from_20_to_100_are_learned_and_served_in_their_unit(tmp_path):
    draw = random.Random(1)
    rows = []
    for _ in range(300):
        good = draw.randrange(5)
        words = draw.sample(GOOD, good) + draw.sample(BAD, 4 - good)
        draw.shuffle(words)
        rows.append({"text": "The essay is " + ", ".join(words) + ".", "score": 20 + 20 * good})
    json_lines(tmp_path / "grades.jsonl", rows)
    lorada(
        tmp_path, "train", "--model", "minilm-l6", "--data", "grades.jsonl", "--output", "grades",
        "eval_data=20%", "max_steps=150", "learning_rate=3e-3", "pooling=mean",
    )  # fmt: skip
    found = json.loads(lorada(tmp_path, "evaluate", "grades", "--json"))
    assert found["pearson"] > 90
    assert found["mae"] < 12
    with serving(tmp_path, "grades") as server:
        texts = [f"The essay is {', '.join(some[:4])}." for some in (GOOD, BAD)]
        best, worst = server.asked("/v1/classify", {"model": "grades", "input": texts})["data"]
        assert 80 < best["score"] < 120
        assert 0 < worst["score"] < 45


def test_pairs_are_learned_and_half_a_pair_is_refused(tmp_path):
    draw = random.Random(2)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "label"])
        for _ in range(300):
            thing, good = draw.choice(THINGS), draw.random() < 0.5
            said = f"It was {draw.choice(GOOD if good else BAD)}."
            writer.writerow([f"What about the {thing}?", said, "praise" if good else "blame"])
    lorada(
        tmp_path, "train", "--model", "minilm-l6", "--data", "pairs.csv", "--output", "pairs",
        "eval_data=20%", "max_steps=100", "learning_rate=3e-3", "pooling=mean",
    )  # fmt: skip
    assert json.loads(lorada(tmp_path, "evaluate", "pairs", "--json"))["accuracy"] > 80
    with serving(tmp_path, "pairs") as server:
        pair = {"text": "What about the music?", "text_pair": "It was charming."}
        (found,) = server.asked("/v1/classify", {"model": "pairs", "input": [pair]})["data"]
        assert found["label"] == "praise"
        half = server.asked("/v1/classify", {"model": "pairs", "input": ["What about the music?"]})
        assert "text_pair" in half["error"]["message"]


def test_a_csv_of_reviews_with_odd_columns(tmp_path):
    draw = random.Random(3)
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Nr", "What they said", "Verdict"])
        for number in range(300):
            good = draw.random() < 0.5
            text = f"A {draw.choice(GOOD if good else BAD)} {draw.choice(THINGS)}; I saw it twice."
            writer.writerow([number, text, "up" if good else "down"])
    columns = ["--columns", "text=What they said,label=Verdict"]
    lorada(
        tmp_path, "train", "--model", "minilm-l6", "--data", "reviews.csv", *columns, "--output",
        "reviews", "eval_data=20%", "max_steps=100", "learning_rate=3e-3", "pooling=mean",
    )  # fmt: skip
    assert json.loads(lorada(tmp_path, "evaluate", "reviews", "--json"))["accuracy"] > 90
    lorada(tmp_path, "predict", "reviews", "--data", "reviews.csv", "--output", "answers.csv")
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert {"Nr", "What they said", "Verdict"} <= answers[0].keys()
    assert [answer["Nr"] for answer in answers] == [str(number) for number in range(300)]
    with serving(tmp_path, "reviews") as server:
        body = {"model": "reviews", "input": "A superb script."}
        assert server.asked("/v1/classify", body)["data"][0]["label"] == "up"
