"""Invented rows of every task, in ``tests/data/rows/NAME.jsonl``.

A line is an object: ``row``, as the data set has it, and in the first line at least ``learned``,
what each protocol makes of the row. Where rows to score are made otherwise, ``scored`` says so.
"""

import json

from paths import TESTS

FOLDER = TESTS / "data" / "rows"


def samples(task):
    with (FOLDER / f"{task}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
