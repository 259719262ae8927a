"""Make the rows of the study (docs/studies/map.md) in a folder, which must not be published.

    pip install reasoning-gym
    python studies/trained/rows.py --data-dir DATA rows

DATA holds the open benchmarks as ``glue/TASK/SPLIT.jsonl.gz``, with the fields of the hub. Held-out
rows come from the training files, because half a validation set is too small to tell methods apart;
the open half of the validation set is added. No held-out text, or half of a pair, is a training
text. A task is drawn with the seed of its name, so the rows are the same each time.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRAIN, HELD_OUT = 3200, 2000
Row = dict[str, Any]

GLUE = {
    "sst2": (("sentence",), ("negative", "positive")),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": (("sentence1", "sentence2"), None),
}
SEEDS = {"syllogism": 20261126, "aiw": 20261127, "family": 20261128}
SHIFTS = (0, 8, 32)  # words in front of a syllogism (H3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for task in GLUE:
        write(given.folder, task, *glue(given.data_dir, task))
    write(given.folder, "sst2_even", *even_sst2(given.data_dir))
    for task in SEEDS:
        train, held_out = generated(task)
        write(given.folder, task, train, held_out)
        if task == "syllogism":
            asked = [[written(row) for row in rows] for rows in (train, held_out)]
            write(given.folder, f"{task}_written", *asked)
            for words in SHIFTS[1:]:
                moved = [[shifted(row, words) for row in rows] for rows in (train, held_out)]
                write(given.folder, f"{task}{words}", *moved)
    rows = knights(TRAIN + HELD_OUT, seed=8)
    write(given.folder, "knights", rows[:TRAIN], rows[TRAIN:])


def write(folder: Path, task: str, train: list[Row], held_out: list[Row]) -> None:
    for name, rows in (("train", train), ("test", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}_{name}.jsonl").write_text(text)
    print(f"{task}: {len(train)} rows to learn from, {len(held_out)} held out")


def glue(data_dir: Path, task: str) -> tuple[list[Row], list[Row]]:
    """Training rows, and held-out rows that share no text with them."""
    fields, labels = GLUE[task]
    pool = [converted(row, fields, labels) for row in read(data_dir, task, "train")]
    random.Random(task).shuffle(pool)
    train = pool[:TRAIN]
    known = {text for row in train for text in texts(row)}
    # SST-2 trains on phrases of sentences: a phrase of a training text is not new either.
    whole = "\n".join(known) if task == "sst2" else ""
    held_out, seen = [], set()
    validation = [converted(row, fields, labels) for row in read(data_dir, task, "validation")]
    for row in (*validation, *pool[TRAIN:]):
        key = texts(row)
        new = key not in seen and not known & set(key)
        if task == "sst2":
            phrase = key[0]
            new = new and phrase not in whole and len(phrase.split()) > 4
            new = new and not any(each in phrase for each in known if len(each.split()) > 4)
        if new:
            held_out.append(row)
            seen.add(key)
        if len(held_out) == HELD_OUT:
            break
    return train, held_out


def even_sst2(data_dir: Path) -> tuple[list[Row], list[Row]]:
    """Rows of SST-2 with more than four words, held out and to learn from by one draw.

    So both have the same lengths, which those of ``glue`` have not. No held-out text is part of a
    training text, or has one as a part.
    """
    fields, labels = GLUE["sst2"]
    pool = [converted(row, fields, labels) for row in read(data_dir, "sst2", "train")]
    pool = list({row["text"]: row for row in pool if len(row["text"].split()) > 4}.values())
    random.Random("sst2_even").shuffle(pool)
    held_out, rest = pool[:HELD_OUT], pool[HELD_OUT:]
    whole, phrases = "\n".join(row["text"] for row in held_out), [row["text"] for row in held_out]
    train: list[Row] = []
    for row in rest:
        text = row["text"]
        if text not in whole and not any(phrase in text for phrase in phrases):
            train.append(row)
        if len(train) == TRAIN:
            break
    return train, held_out


def read(data_dir: Path, task: str, split: str) -> Iterator[Row]:
    with gzip.open(data_dir / "glue" / task / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def converted(row: Row, fields: tuple[str, ...], labels: tuple[str, ...] | None) -> Row:
    names = ("text", "text_pair")
    found: Row = {name: row[key].strip() for name, key in zip(names, fields, strict=False)}
    if labels is None:
        return {**found, "score": float(row["label"])}
    return {**found, "label": labels[row["label"]]}


def texts(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("text", "text_pair") if name in row)


def generated(task: str) -> tuple[list[Row], list[Row]]:
    """Distinct questions of reasoning-gym, as rows with a class; syllogisms are half Yes."""
    import reasoning_gym

    name = {"family": "family_relationships"}.get(task, task)
    size = 8 * (TRAIN + HELD_OUT)
    dataset = reasoning_gym.create_dataset(name, size=size, seed=SEEDS[task])
    rows: dict[str, Row] = {}
    for item in dataset:
        question = " ".join(plain(item["question"]).split())
        rows[question] = {"text": question, "label": str(item["answer"])}
    found = list(rows.values())
    if task == "syllogism":
        sides = [[row for row in found if row["label"] == label] for label in ("Yes", "No")]
        found = [row for pair in zip(*sides, strict=False) for row in pair]
    return found[:TRAIN], found[TRAIN : TRAIN + HELD_OUT]


def knights(count: int, seed: int) -> list[Row]:
    """Distinct pairs of statements of reasoning-gym, with who of the two tells the truth."""
    import reasoning_gym

    found: dict[str, Row] = {}
    items = reasoning_gym.create_dataset("knights_knaves", n_people=2, size=3 * count, seed=seed)
    for item in items:
        text = item["question"].split("inhabitants: ")[1].split(" So who is")[0]
        label = " ".join("true" if each else "false" for each in item["metadata"]["solution"])
        found[text] = {"text": text, "label": label}
    return list(found.values())[:count]


def plain(question: str) -> str:
    """A question without the words that all questions of its kind have in common."""
    for frame in (
        "Consider these statements:", "Does it logically follow that:", "(Answer Yes or No)",
        "Respond only with the word that describes their relationship.",
    ):  # fmt: skip
        question = question.replace(frame, " ")
    return question


def written(row: Row) -> Row:
    """The row for a model that writes its answer."""
    return {"prompt": f"{row['text']}\nAnswer:", "response": f" {row['label']}"}


def shifted(row: Row, most: int) -> Row:
    """The row behind 0 to ``most`` words of another kind of text, so that its form moves."""
    draw = random.Random(f"{most} {row['text']}")
    words = [draw.choice(FILLER.split()) for _ in range(draw.randint(0, most))]
    return {**row, "text": " ".join([*words, row["text"]])}


FILLER = (
    "the rain over a small town with its old river and some green hills near many quiet roads "
    "while two boats went slowly to an island where people had built white houses long ago"
)

if __name__ == "__main__":
    main()
