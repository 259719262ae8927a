"""Arithmetic word problems: trained on MATH10K, tested on AQuA, GSM8K, MAWPS and SVAMP.

Rows have the fields of LLM-Adapters' files (Hu et al., 2023). Without a local folder they are read
from its repository. ``answer`` is the right answer; the ``output`` of a test row is an answer of
ChatGPT, and is not used.
"""

import re
from collections.abc import Callable
from functools import partial
from math import inf, isfinite
from operator import eq
from typing import Any

from lorada.data.benchmarks.published_prompts import (
    REPOSITORY,
    answered,
    generating,
    on_one_line,
    quanta_prompt,
)
from lorada.data.task import Metrics, Protocol, Source, Task
from lorada.support.row_sources import Row

FOLDER = "arithmetic_llm_adapters"
MATH10K = f"{REPOSITORY}/ft-training_set/math_10k.json"
# A local folder has a set as large as MATH10K and composed like it, and a small part of MATH10K.
TRAIN = {
    "math10k_rebuilt": Source(f"{FOLDER}/math10k_rebuilt", "train", MATH10K),
    "math_10k": Source(f"{FOLDER}/math_10k", "train", MATH10K),
}
LETTERS = "ABCDE"
QUANTA_LETTERS = "ABCDEFGHIK"  # QuanTA's list has no J


def last_number(text: str) -> float:
    """The last number in a text, read without commas; infinity if there is none."""
    numbers = re.findall(r"-?\d+(?:\.\d*)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else inf


def first_letter(text: str, letters: str = LETTERS) -> str | None:
    """The first of these capital letters in a text, even inside a word; None if there is none."""
    return next((character for character in text if character in letters), None)


def right_number(answer: Any) -> float:
    """The right answer of a row as a number, read without commas.

    Raises:
        ValueError: for an answer that is no finite number.
    """
    try:
        number = float(str(answer).replace(",", ""))
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ValueError(f"answer {answer!r} is not a number")
    return number


def right_letter(answer: Any) -> str:
    """The right answer of a row, which is one of ``LETTERS``.

    Raises:
        ValueError: for any other answer.
    """
    if answer not in tuple(LETTERS):
        raise ValueError(f"answer {answer!r} is not one of {', '.join(LETTERS)}")
    return str(answer)


def score_numbers(outputs: list[str], rows: list[Row], answer: Callable[[str], str]) -> Metrics:
    """``exact``, ``quanta_one_sided`` and ``unparsable``, in percent.

    ``exact``: within 1e-3 of the right number. ``quanta_one_sided``: what QuanTA's evaluation
    counts as right. By mistake its comparison is inside the absolute value, so every number that is
    not smaller than the right one counts; so does an output without a number, which is infinity.
    """
    numbers = [last_number(answer(output)) for output in outputs]
    errors = []
    for number, row in zip(numbers, rows, strict=True):
        errors.append(right_number(row["answer"]) - number)
    return _percent(
        exact=[abs(error) <= 1e-3 for error in errors],
        quanta_one_sided=[error < 1e-5 for error in errors],
        unparsable=[number == inf for number in numbers],
    )


def score_letters(outputs: list[str], rows: list[Row], answer: Callable[[str], str]) -> Metrics:
    """``exact``, ``quanta_one_sided`` and ``unparsable`` of letters, in percent.

    The first letter is compared with the right one; QuanTA also searches for letters after E.
    """
    right_letters = [row["answer"] for row in rows]
    letters = [first_letter(answer(output)) for output in outputs]
    quanta_letters = [first_letter(answer(output), QUANTA_LETTERS) for output in outputs]
    return _percent(
        exact=list(map(eq, letters, right_letters)),
        quanta_one_sided=list(map(eq, quanta_letters, right_letters)),
        unparsable=[letter is None for letter in letters],
    )


def _percent(**counted: list[bool]) -> Metrics:
    """The share of each list that is true, in percent, by the same names."""
    return {name: 100.0 * sum(values) / len(values) for name, values in counted.items()}


def first_line(output: str) -> str:
    """The first line of an output; QuanTA's answers end with a newline."""
    return output.split("\n")[0]


def _rationale(row: Row, field: str, check: Callable[[Any], object] = str) -> Row:
    """A row with QuanTA's prompt; the response is one line and ends with a newline."""
    check(row["answer"])
    return {
        "prompt": quanta_prompt(row["instruction"]),
        "response": f" {on_one_line(row[field])}\n",
        "answer": row["answer"],
    }


def _task(summary: str, folder: str, *, letters: bool = False) -> Task:
    """A task of LLM-Adapters' files, by its protocol and by QuanTA's.

    ``letters`` says whether its answers are letters of options, and not numbers.
    """
    score = score_letters if letters else score_numbers
    # Training rows are not checked: MATH10K has letters and numbers, and its answers are not used.
    check = right_letter if letters else right_number
    return Task(
        summary=f"{summary}; exact answers, and QuanTA's count",
        benchmark="arithmetic",
        protocols={
            "generate": generating("answer", partial(score, answer=answered), 256, check),
            "quanta": Protocol(
                form="prompt",
                kinds=("decoder",),
                convert=partial(_rationale, field="output"),
                convert_test=partial(_rationale, field="answer", check=check),
                score=partial(score, answer=first_line),
                generation={"max_new_tokens": 256, "stop_strings": ["\n"]},
                joint=True,
            ),
        },
        train=TRAIN,
        test={"": Source(f"{FOLDER}/{folder}", "test", f"{REPOSITORY}/dataset/{folder}/test.json")},
    )


ARITHMETIC = {
    "aqua": _task("algebra with five options", "AQuA", letters=True),
    "gsm8k": _task("grade-school problems of several steps", "gsm8k"),
    "mawps": _task("elementary problems", "mawps"),
    "svamp": _task("elementary problems with varied wording", "SVAMP"),
}
