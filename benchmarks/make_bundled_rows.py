"""Make the bundled rows: syllogisms from reasoning-gym.

    pip install reasoning-gym
    python benchmarks/make_bundled_rows.py

Writes 2,000 rows to train on and 200 to test on as prompts with responses, and 3,000 other ones as
sentences with labels, for the quickstart. Half of the answers are Yes and half No, so that always
giving one answer scores 50 %. No question occurs twice, so no test question is trained on.
"""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import reasoning_gym

TARGET = Path(__file__).parents[1] / "src" / "lorada" / "recipes" / "rows"
SIZES = {"train": 2000, "test": 200}
LABELLED = 3000
FRAME = ("Consider these statements:\n", "(Answer Yes or No)")
LABELS = {"Yes": "valid", "No": "invalid"}


def main() -> None:
    lines = balanced(questions(10_000, seed=20261125))
    start = 0
    for name, size in SIZES.items():
        part = lines[start : start + size]
        assert len(part) == size, f"only {len(lines)} distinct questions"
        rows = [{"prompt": f"{question}\nAnswer:", "response": f" {a}"} for question, a in part]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (TARGET / f"syllogisms_{name}.jsonl").write_text(text)
        print(name, size, dict(Counter(answer for _, answer in part)))
        start += size
    labelled = balanced(questions(30_000, seed=20261130))[:LABELLED]
    assert len(labelled) == LABELLED
    with (TARGET / "syllogisms.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["text", "label"])
        table.writerows((sentences(question), LABELS[answer]) for question, answer in labelled)


def questions(size: int, seed: int) -> dict[str, str]:
    """Distinct questions, with Yes or No."""
    found = {}
    for item in reasoning_gym.create_dataset("syllogism", size=size, seed=seed):
        question = item["question"].removeprefix(FRAME[0]).removesuffix(FRAME[1]).strip()
        question = question.replace("\n\n", "\n").replace("that:\n", "that: ")
        found[question] = item["answer"]
    return found


def balanced(answers: dict[str, str]) -> list[tuple[str, str]]:
    """Questions with their answers, in turn one with Yes and one with No."""
    by_answer = [[pair for pair in answers.items() if pair[1] == a] for a in LABELS]
    return [pair for both in zip(*by_answer, strict=False) for pair in both]


def sentences(question: str) -> str:
    """Such as ``All dogs are pets. No pets are cats. Therefore, no dogs are cats.``"""
    first, second, last = question.splitlines()
    conclusion = last.partition("that: ")[2].rstrip("?")
    premises = ". ".join(re.sub(r"^\d\. ", "", line) for line in (first, second))
    return f"{premises}. Therefore, {conclusion[0].lower()}{conclusion[1:]}."


if __name__ == "__main__":
    main()
