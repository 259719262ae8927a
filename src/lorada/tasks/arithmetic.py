"""Arithmetic word problems: trained on MATH10K, tested on AQuA, GSM8K, MAWPS and SVAMP.

Rows have the fields of LLM-Adapters' files (Hu et al., 2023), which are read from its repository if
there is no local folder. ``answer`` is the right answer; the ``output`` of test rows is one that
ChatGPT once gave, and is not used.
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
# In a local folder: a set composed like MATH10K and as large, and a small part of MATH10K itself.
TRAIN = {
    "math10k_rebuilt": Source(f"{FOLDER}/math10k_rebuilt", "train", MATH10K),
    "math_10k": Source(f"{FOLDER}/math_10k", "train", MATH10K),
}
LETTERS = "ABCDE"
QUANTA_LETTERS = "ABCDEFGHIK"  # those of QuanTA's list, which has no J


def last_number(text: str) -> float:
    """The last number of a text, with commas left out; infinity if it has none."""
    found = re.findall(r"-?\d+(?:\.\d*)?", text.replace(",", ""))
    return float(found[-1]) if found else inf


def first_letter(text: str, letters: str = LETTERS) -> str | None:
    """The first of these capital letters in a text, even inside a word; None if it has none."""
    return next((character for character in text if character in letters), None)


def right_number(answer: Any) -> float:
    """The answer of a row to score as a number, with commas left out.

    Raises:
        ValueError: if it is none, so that no output could be right.
    """
    try:
        number = float(str(answer).replace(",", ""))
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ValueError(f"answer {answer!r} is not a number")
    return number


def right_letter(answer: Any) -> str:
    """The answer of a row to score as a letter.

    Raises:
        ValueError: if it is not one of the letters that outputs are searched for.
    """
    if answer not in tuple(LETTERS):
        raise ValueError(f"answer {answer!r} is not one of {', '.join(LETTERS)}")
    return str(answer)


def score_numbers(outputs: list[str], rows: list[Row], answer: Callable[[str], str]) -> Metrics:
    """``exact``, ``quanta_one_sided`` and ``unparsable``, in percent.

    ``exact``: within 1e-3 of the right number. ``quanta_one_sided`` is what QuanTA's evaluation
    counts. Its comparison is inside the absolute value by mistake, so any number that is not
    smaller than the right one counts, and so does an output without a number, taken as infinity.
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

    Both compare the first letter; QuanTA also takes letters after E for answers.
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
    """The first line of an output, for a model that ends its answer with a newline."""
    return output.split("\n")[0]


def _scorable(row: Row, right: Callable[[Any], Any]) -> Row:
    """A row to score, unchanged, after its answer has been checked."""
    right(row["answer"])
    return row


def _rationale(row: Row, field: str, shape: llm_adapters_prompt.Shape = unchanged) -> Row:
    """QuanTA's prompt, and as response one line with its newline."""
    row = shape(row)
    return {
        "prompt": quanta_prompt.prompt(row["instruction"]),
        "response": f" {quanta_prompt.clean(row[field])}\n",
        "answer": row["answer"],
    }


def _task(summary: str, folder: str, *, letters: bool = False) -> Task:
    score = score_letters if letters else score_numbers
    # Only rows to score are checked: MATH10K has letters and numbers, and its answers are not used.
    scorable = partial(_scorable, right=right_letter if letters else right_number)
    generated = partial(score, answer=llm_adapters_prompt.answered)
    return Task(
        summary=f"{summary}; exact answers, and QuanTA's count",
        benchmark="arithmetic",
        protocols={
            **llm_adapters_prompt.protocols(
                unchanged, "answer", generated, 256, test_shape=scorable
            ),
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
