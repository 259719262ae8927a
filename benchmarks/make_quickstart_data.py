"""Make the rows of the quickstart: syllogisms from reasoning-gym.

    pip install reasoning-gym
    python benchmarks/make_quickstart_data.py

Writes 2,000 rows to train on and 200 to test on. Half of the answers are Yes and half No, so that
always giving one answer scores 50 %. No question occurs twice, so no test question is trained on.
"""

import json
from collections import Counter
from pathlib import Path

import reasoning_gym

TARGET = Path(__file__).parents[1] / "src" / "lorada" / "recipes" / "quickstart"
SIZES = {"train": 2000, "test": 200}
FRAME = ("Consider these statements:\n", "(Answer Yes or No)")


def main() -> None:
    dataset = reasoning_gym.create_dataset("syllogism", size=10000, seed=20261125)
    rows = {}
    for item in dataset:
        question = item["question"].removeprefix(FRAME[0]).removesuffix(FRAME[1]).strip()
        question = question.replace("\n\n", "\n").replace("that:\n", "that: ")
        rows[question] = {"prompt": f"{question}\nAnswer:", "response": f" {item['answer']}"}
    by_answer = [
        [r for r in rows.values() if r["response"] == answer] for answer in (" Yes", " No")
    ]
    lines = [row for pair in zip(*by_answer, strict=False) for row in pair]
    start = 0
    for name, size in SIZES.items():
        part = lines[start : start + size]
        assert len(part) == size, f"only {len(lines)} distinct questions"
        text = "".join(json.dumps(row) + "\n" for row in part)
        (TARGET / f"syllogisms_{name}.jsonl").write_text(text)
        print(name, size, dict(Counter(row["response"] for row in part)))
        start += size


if __name__ == "__main__":
    main()
