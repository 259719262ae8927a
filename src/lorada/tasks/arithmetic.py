"""Arithmetic word problems: trained on MATH10K, tested on AQuA, GSM8K, MAWPS and SVAMP.

Rows have the fields of LLM-Adapters' files (Hu et al., 2023). Without a local folder they are read
from its repository. ``answer`` is the right answer; the ``output`` of a test row is an answer of
ChatGPT, and is not used.
"""

import re
from collections.abc import Callable
from functools import partial
from math import inf, isfinite
from typing import Any

from lorada.tasks import llm_adapters_prompt, quanta_prompt
from lorada.tasks.metrics import Metrics
from lorada.tasks.rows import Row
from lorada.tasks.task import Protocol, Source, Task, unchanged

FOLDER = "arithmetic_llm_adapters"
MATH10K = f"{llm_adapters_prompt.REPOSITORY}/ft-training_set/math_10k.json"
# A local folder has a set as large as MATH10K and composed like it, and a small part of MATH10K.
TRAIN = {
    "math10k_rebuilt": Source(f"{FOLDER}/math10k_rebuilt", "train", MATH10K),
    "math_10k": Source(f"{FOLDER}/math_10k", "train", MATH10K),
}
LETTERS = "ABCDE"
QUANTA_LETTERS = "ABCDEFGHIK"  # QuanTA's list has no J


def last_number(text: str) -> float:
    """The last number in a text, read without commas; infinity if there is none."""
    found = re.findall(r"-?\d+(?:\.\d*)?", text.replace(",", ""))
    return float(found[-1]) if found else inf


def first_letter(text: str, letters: str = LETTERS) -> str | None:
    """The first of these capital letters in a text, even inside a word; None if there is none."""
    return next((character for character in text if character in letters), None)


def right_number(answer: Any) -> float:
    """The right answer of a row as a number, read without commas.

    Raises:
        ValueError: if it is not a finite number.
    """
    try:
        number = float(str(answer).replace(",", ""))
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ValueError(f"answer {answer!r} is not a number")
    return number


def right_letter(answer: Any) -> str:
    """The right answer of a row as a letter.

    Raises:
        ValueError: if it is not one of ``LETTERS``.
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
    found = [last_number(answer(output)) for output in outputs]
    right = [right_number(row["answer"]) for row in rows]
    pairs = list(zip(found, right, strict=True))
    return {
        "exact": _percent([abs(gold - number) <= 1e-3 for number, gold in pairs]),
        "quanta_one_sided": _percent([gold - number < 1e-5 for number, gold in pairs]),
        "unparsable": _percent([number == inf for number in found]),
    }


def score_letters(outputs: list[str], rows: list[Row], answer: Callable[[str], str]) -> Metrics:
    """``exact``, ``quanta_one_sided`` and ``unparsable`` of letters, in percent.

    The first letter is compared with the right one; QuanTA also searches for letters after E.
    """
    texts = [answer(output) for output in outputs]
    pairs = list(zip(texts, [row["answer"] for row in rows], strict=True))
    return {
        "exact": _percent([first_letter(text) == gold for text, gold in pairs]),
        "quanta_one_sided": _percent(
            [first_letter(text, QUANTA_LETTERS) == gold for text, gold in pairs]
        ),
        "unparsable": _percent([first_letter(text) is None for text in texts]),
    }


def _percent(values: list[bool]) -> float:
    return 100.0 * sum(values) / len(values)


def first_line(output: str) -> str:
    """The first line of an output; QuanTA's answers end with a newline."""
    return output.split("\n")[0]


def _scorable(row: Row, right: Callable[[Any], Any]) -> Row:
    """The row, unchanged; raises if its answer could never be matched."""
    right(row["answer"])
    return row


def _rationale(row: Row, field: str, check: Callable[[Row], Row] = unchanged) -> Row:
    """A row with QuanTA's prompt; the response is one line and ends with a newline."""
    row = check(row)
    return {
        "prompt": quanta_prompt.prompt(row["instruction"]),
        "response": f" {quanta_prompt.clean(row[field])}\n",
        "answer": row["answer"],
    }


def _task(summary: str, folder: str, *, letters: bool = False) -> Task:
    score = score_letters if letters else score_numbers
    # Training rows are not checked: MATH10K has letters and numbers, and its answers are not used.
    scorable = partial(_scorable, right=right_letter if letters else right_number)
    generated = partial(score, answer=llm_adapters_prompt.answered)
    return Task(
        summary=f"{summary}; exact answers, and QuanTA's count",
        benchmark="arithmetic",
        protocols={
            **llm_adapters_prompt.protocols("answer", generated, 256, scorable),
            "quanta": Protocol(
                form="prompt",
                kinds=("decoder",),
                convert=partial(_rationale, field="output"),
                convert_test=partial(_rationale, field="answer", check=scorable),
                score=partial(score, answer=first_line),
                generation={"max_new_tokens": 256, "stop_strings": ["\n"]},
                joint=True,
            ),
        },
        train=TRAIN,
        test={
            "": Source(
                f"{FOLDER}/{folder}",
                "test",
                f"{llm_adapters_prompt.REPOSITORY}/dataset/{folder}/test.json",
            )
        },
    )


ARITHMETIC = {
    "aqua": _task("algebra with five options", "AQuA", letters=True),
    "gsm8k": _task("grade-school problems of several steps", "gsm8k"),
    "mawps": _task("elementary problems", "mawps"),
    "svamp": _task("elementary problems with varied wording", "SVAMP"),
}
