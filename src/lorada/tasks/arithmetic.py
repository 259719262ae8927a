"""Arithmetic word problems: trained on MATH10K, tested on AQuA, GSM8K, MAWPS and SVAMP.

Rows are in the shape of LLM-Adapters' files (Hu et al., 2023), which are read from its repository
where there is no local folder. ``answer`` is the right one; the ``output`` of its test rows is
what ChatGPT once said and is not used.
"""

import re
from collections.abc import Callable
from functools import partial
from math import inf, isfinite
from typing import Any

from lorada.tasks import llm_adapters_prompt, quanta_prompt
from lorada.tasks.metrics import Metrics
from lorada.tasks.rows import Row
from lorada.tasks.task import Protocol, Source, Task, same

FOLDER = "arithmetic_llm_adapters"
MATH10K = f"{llm_adapters_prompt.REPOSITORY}/ft-training_set/math_10k.json"
# Locally: a set of the same make-up and size, and a small part of the real one.
TRAIN = {
    "math10k_rebuilt": Source(f"{FOLDER}/math10k_rebuilt", "train", MATH10K),
    "math_10k": Source(f"{FOLDER}/math_10k", "train", MATH10K),
}
LETTERS = "ABCDE"
QUANTA_LETTERS = "ABCDEFGHIK"  # its list has G twice and no J


def last_number(text: str) -> float:
    """The last number of a text, whose commas do not count; infinite where there is none."""
    found = re.findall(r"-?\d+(?:\.\d*)?", text.replace(",", ""))
    return float(found[-1]) if found else inf


def first_letter(text: str, letters: str = LETTERS) -> str | None:
    """The first of some capital letters anywhere in a text, be it in a word."""
    return next((character for character in text if character in letters), None)


def right_number(answer: Any) -> float:
    """The number that a row to score has for its answer; commas do not count.

    Raises:
        ValueError: if it has none, so that no output could be right.
    """
    try:
        number = float(str(answer).replace(",", ""))
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ValueError(f"answer {answer!r} is not a number")
    return number


def right_letter(answer: Any) -> str:
    """The letter that a row to score has for its answer.

    Raises:
        ValueError: if it is none that is looked for in outputs.
    """
    if answer not in tuple(LETTERS):
        raise ValueError(f"answer {answer!r} is not one of {', '.join(LETTERS)}")
    return str(answer)


def score_numbers(outputs: list[str], rows: list[Row], answer: Callable[[str], str]) -> Metrics:
    """``exact``, ``quanta_one_sided`` and ``unparsable``, in percent.

    ``exact``: within 1e-3 of the right number. ``quanta_one_sided`` is what QuanTA's evaluation
    counts: its comparison stands inside the absolute value, so any number that is not smaller than
    the right one counts, and so does an output without a number, which it takes as infinite.
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

    Both compare the first letter as it is; QuanTA also reads those behind E.
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
    """The answer of a model that ends its answers with a newline."""
    return output.split("\n")[0]


def _scorable(row: Row, right: Callable[[Any], Any]) -> Row:
    """A row to score, as it is, once its answer has been found to be one."""
    right(row["answer"])
    return row


def _rationale(row: Row, field: str, shape: llm_adapters_prompt.Shape = same) -> Row:
    """QuanTA's prompt; what follows is one line, with its end."""
    row = shape(row)
    return {
        "prompt": quanta_prompt.prompt(row["instruction"]),
        "response": f" {quanta_prompt.clean(row[field])}\n",
        "answer": row["answer"],
    }


def _task(summary: str, folder: str, *, letters: bool = False) -> Task:
    score = score_letters if letters else score_numbers
    # Of rows to score only: MATH10K has letters and numbers, and its answers are not used.
    scorable = partial(_scorable, right=right_letter if letters else right_number)
    generated = partial(score, answer=llm_adapters_prompt.answered)
    return Task(
        summary=f"{summary}; exact answers, and QuanTA's count",
        benchmark="arithmetic",
        protocols={
            **llm_adapters_prompt.protocols(same, "answer", generated, 256, test_shape=scorable),
            "quanta": Protocol(
                form="prompt",
                kinds=("decoder",),
                convert=partial(_rationale, field="output"),
                convert_test=partial(_rationale, field="answer", shape=scorable),
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
