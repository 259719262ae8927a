"""Make the bundled task of the quickstart: word problems about legs, from reasoning-gym.

    pip install reasoning-gym
    python benchmarks/make_quickstart_data.py

Questions of the task ``leg_counting`` with one or two kinds of animals, without the instruction
paragraph; no question occurs twice, so no test question occurs in training. Writes 2,000 training
and 200 test rows to src/lorada/data/.
"""

import json
from pathlib import Path

import reasoning_gym

TARGET = Path(__file__).parents[1] / "src" / "lorada" / "data"
SIZES = {"train": 2000, "test": 200}


def main() -> None:
    dataset = reasoning_gym.create_dataset(
        "leg_counting", size=5000, seed=20261125,
        min_animals=1, max_animals=2, min_instances=1, max_instances=6,
    )  # fmt: skip
    rows = {}
    for item in dataset:
        question = item["question"].strip().splitlines()[-1].removeprefix("Now, ").strip()
        question = question[0].upper() + question[1:]
        rows[question] = {"prompt": f"{question}\nAnswer:", "response": f" {item['answer']}"}
    lines = [json.dumps(row) for row in rows.values()]
    start = 0
    for name, size in SIZES.items():
        part = lines[start : start + size]
        assert len(part) == size, f"only {len(lines)} distinct questions"
        (TARGET / f"legs_{name}.jsonl").write_text("\n".join(part) + "\n")
        start += size


if __name__ == "__main__":
    main()
