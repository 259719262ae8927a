"""The prompts of LLM-Adapters and of QuanTA with their exact white space, for rows of its files.

LLM-Adapters' f-string was never dedented, so every line after the header is indented by 16 spaces.
Its prompts for training and evaluation differ in white space. QuanTA's has the question on one
line, then ``Answer:``.

Sources: ``finetune.py``, ``evaluate.py`` and ``commonsense_evaluate.py`` of
AGI-Edgerunners/LLM-Adapters (Hu et al., 2023); ``run/utils/{tasks,templates}.py`` of
quanta-fine-tuning/quanta (Chen et al., 2024).
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from lorada.data.task import Protocol, Score
from lorada.support.row_sources import Row

REPOSITORY = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
MARKER = "### Response:"
INDENT = " " * 16
TASK = "Below is an instruction that describes a task"
WITH_INPUT = ", paired with an input that provides further context"
WRITE = ". Write a response that appropriately completes the request."
FORMAT = "answer format:"


def training_prompt(instruction: str, context: str = "") -> str:
    """LLM-Adapters' prompt in training; ``context`` is its input, empty in the sets used here."""
    return _prompt(instruction, context, " " * (1 if context else 2), INDENT, INDENT)


def evaluation_prompt(instruction: str, context: str = "") -> str:
    """Its prompt in evaluation: fewer spaces after the header and on the empty lines."""
    return _prompt(instruction, context, "" if context else " ", INDENT)


def clean_prompt(instruction: str, context: str = "") -> str:
    """The same prompt without the odd spaces, which is Alpaca's."""
    return _prompt(instruction, context)


def _prompt(
    instruction: str, context: str, header_end: str = "", indent: str = "", empty_line: str = ""
) -> str:
    """The prompt with these blanks after its header, before each line, and on empty lines.

    A block for the input is there only if there is one (``context``).
    """
    text = f"{TASK}{WITH_INPUT if context else ''}{WRITE}{header_end}\n\n"
    blocks = [("### Instruction:", instruction), ("### Input:", context)]
    for title, block in blocks if context else blocks[:1]:
        text += f"{indent}{title}\n{indent}{block}\n{empty_line}\n"
    return f"{text}{indent}{MARKER}\n{indent}"


def answered(output: str) -> str:
    """The model's answer: what it wrote before it began another response."""
    return output.split(MARKER)[0]


def generating(
    gold: str, score: Score, max_new_tokens: int, check: Callable[[Any], object] = str
) -> Protocol:
    """The protocol that scores text generated after LLM-Adapters' prompt.

    ``gold`` is the field of a test row with the right answer; ``check`` raises if an answer can
    never be matched.
    """
    return Protocol(
        form="prompt",
        kinds=("decoder",),
        convert=_to_learn,
        convert_test=partial(_to_score, gold=gold, check=check),
        score=score,
        generation={"num_beams": 4, "max_new_tokens": max_new_tokens},
        loss_on="all",
        joint=True,
    )


def _to_learn(row: Row) -> Row:
    """A row to learn; raises if its instruction lists options and the answer is none of them.

    Case matters, because outputs are searched for options in lower case.
    """
    instruction, answer = row["instruction"], row["answer"]
    if FORMAT in instruction.lower():
        options = candidates(instruction)
        if answer not in options:
            raise ValueError(f"answer {answer!r} is not one of {', '.join(options)}")
    prompt = training_prompt(instruction, row.get("input") or "")
    return {"prompt": prompt, "response": row["output"], "answer": answer}


def _to_score(row: Row, gold: str, check: Callable[[Any], object]) -> Row:
    """A row to score, with the prompt of the evaluation; raises for an answer of no use."""
    check(row["answer"])
    eval_prompt = evaluation_prompt(row["instruction"], row.get("input") or "")
    return {**_to_learn(row), "eval_prompt": eval_prompt, "response": row[gold]}


def on_one_line(text: str) -> str:
    """A text as QuanTA cleans it: newlines become ". ", or " " after .!?;: or white space."""
    return re.sub(r"\n+", _join, text).strip()


def _join(newlines: re.Match[str]) -> str:
    """What takes the place of newlines: a blank behind punctuation, else a full stop too."""
    before = newlines.string[: newlines.start()][-1:]
    return " " if before and (before in ".!?;:" or before.isspace()) else ". "


def quanta_prompt(instruction: str) -> str:
    """QuanTA's prompt; the answer follows after a space."""
    return f"{on_one_line(instruction)}\nAnswer:"


def candidates(instruction: str) -> list[str]:
    """The words to choose from: a, b and c if the instruction has "Answer format: a/b/c".

    Raises:
        ValueError: if the instruction does not name two words or more like that.
    """
    _, marker, rest = instruction.lower().partition(FORMAT)
    first_line = rest.strip().split("\n")[0]
    words = [word.strip() for word in first_line.split("/")]
    if not marker or len(words) < 2:
        raise ValueError("the instruction has no 'Answer format: a/b'")
    return words


def choice(row: Row) -> Row:
    """A row of the form ``choice``, as QuanTA asks it, from one with LLM-Adapters' fields.

    Raises:
        ValueError: if the instruction names no words, or the answer is none of them.
    """
    words = candidates(row["instruction"])
    answer = row["answer"].lower()
    if answer not in words:
        raise ValueError(f"answer {row['answer']!r} is not one of {', '.join(words)}")
    return {
        "prompt": quanta_prompt(row["instruction"]),
        "candidates": [f" the correct answer is {word}." for word in words],
        "answer": words.index(answer),
    }
