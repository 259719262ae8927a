"""A job from a file to a file of answers, by the commands that README types and no others."""

import csv
import json
import random
import sys
from pathlib import Path

import pytest
from programs import printed

pytestmark = pytest.mark.more
LORADA = Path(sys.executable).with_name("lorada")
GOOD = ("wonderful", "brilliant", "delightful", "charming", "superb")
BAD = ("dreadful", "boring", "clumsy", "awful", "lifeless")
THINGS = ("plot", "music", "acting", "script", "camera", "ending")


def pair(draw):
    good = draw.random() < 0.5
    said = f"It was {draw.choice(GOOD if good else BAD)}."
    asked = f"What about the {draw.choice(THINGS)}?"
    return {"sentence1": asked, "sentence2": said, "label": "praise" if good else "blame"}


@pytest.mark.more
def test_pairs_are_learned_scored_and_answered(tmp_path):
    draw = random.Random(1)
    rows = [pair(draw) for _ in range(300)]
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
    assert json.loads(lorada("evaluate", "mine", "--json"))["accuracy"] > 80
    lorada("predict", "mine", "--data", "rows.csv", "--output", "answers.csv")
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    for name in rows[0]:  # all that a row had stands beside its answer
        assert [answer[name] for answer in answers] == [str(row[name]) for row in rows]
    asked = {"text": "What about the music?", "text_pair": "It was charming."}
    (tmp_path / "one.jsonl").write_text(json.dumps(asked), encoding="utf-8")
    (answer,) = json.loads(lorada("predict", "mine", "--data", "one.jsonl", "--json"))
    assert answer["label"] == "praise"
