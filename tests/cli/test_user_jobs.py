"""Jobs from a file to a served answer, by the commands that README types and no others.

The rows are made here: grades from 20 to 100, and pairs of sentences.
"""

import csv
import json
import random
import sys
from pathlib import Path

import pytest
from programs import printed
from servers import Process

pytestmark = pytest.mark.more
LORADA = Path(sys.executable).with_name("lorada")
GOOD = ("wonderful", "brilliant", "delightful", "charming", "superb")
BAD = ("dreadful", "boring", "clumsy", "awful", "lifeless")
THINGS = ("plot", "music", "acting", "script", "camera", "ending")


def grade(draw):
    good = draw.randrange(5)
    words = draw.sample(GOOD, good) + draw.sample(BAD, 4 - good)
    draw.shuffle(words)
    return {"text": f"The essay is {', '.join(words)}.", "score": 20 + 20 * good}


def pair(draw):
    good = draw.random() < 0.5
    said = f"It was {draw.choice(GOOD if good else BAD)}."
    asked = f"What about the {draw.choice(THINGS)}?"
    return {"sentence1": asked, "sentence2": said, "label": "praise" if good else "blame"}


# What makes a row, a score to reach; input → whether its answer is right.
JOBS = {
    "grades": (grade, ("pearson", 90), {
        f"The essay is {', '.join(GOOD[:4])}.": lambda one: 80 < one["score"] < 120,
        f"The essay is {', '.join(BAD[:4])}.": lambda one: 0 < one["score"] < 45,
    }),
    "pairs": (pair, ("accuracy", 80), {
        ("What about the music?", "It was charming."): lambda one: one["label"] == "praise",
    }),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_rows_are_learned_scored_answered_and_served(job, tmp_path):
    make, (metric, least), asked = JOBS[job]
    draw = random.Random(1)
    rows = [make(draw) for _ in range(300)]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)

    def lorada(*words):
        return printed(LORADA, *words, folder=tmp_path)

    lorada(
        "train", "--model", "minilm-l6", "--data", "rows.csv", "--output", "mine",
        "eval_data=20%", "max_steps=150", "learning_rate=3e-3", "pooling=mean",
    )  # fmt: skip
    assert json.loads(lorada("evaluate", "mine", "--json"))[metric] > least
    lorada("predict", "mine", "--data", "rows.csv", "--output", "answers.csv")
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    for name in rows[0]:  # all that a row had stands beside its answer
        assert [answer[name] for answer in answers] == [str(row[name]) for row in rows]
    server = Process("mine", folder=tmp_path)
    try:
        texts = [
            text if isinstance(text, str) else dict(zip(("text", "text_pair"), text, strict=True))
            for text in asked
        ]
        found = server.asked("/v1/classify", {"model": "mine", "input": texts})["data"]
        assert all(right(one) for right, one in zip(asked.values(), found, strict=True)), found
    finally:
        server.process.terminate()
        server.process.wait(30)
