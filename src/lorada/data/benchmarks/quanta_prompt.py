"""The prompt of QuanTA: the question on one line, then ``Answer:``.

Source: ``run/utils/{tasks,templates}.py`` of quanta-fine-tuning/quanta (Chen et al., 2024).
"""

import re

from lorada.support.row_sources import Row

FORMAT = "answer format:"


def clean(text: str) -> str:
    """A text on one line: newlines become ". ", or " " after .!?;: or white space."""
    return re.sub(r"\n+", _join, text).strip()


def _join(newlines: re.Match[str]) -> str:
    before = newlines.string[: newlines.start()][-1:]
    return " " if before and (before in ".!?;:" or before.isspace()) else ". "


def prompt(instruction: str) -> str:
    """The prompt; the answer follows after a space."""
    return f"{clean(instruction)}\nAnswer:"


def candidates(instruction: str) -> list[str]:
    """The words to choose from: a, b and c if the instruction has "Answer format: a/b/c"."""
    _, found, rest = instruction.lower().partition(FORMAT)
    words = [word.strip() for word in rest.strip().split("\n")[0].split("/")]
    if not found or len(words) < 2:
        raise ValueError("the instruction has no 'Answer format: a/b'")
    return words


def choice(row: Row) -> Row:
    """Turn a row with LLM-Adapters' fields into a row of the form ``choice``."""
    words, answer = candidates(row["instruction"]), row["answer"].lower()
    if answer not in words:
        raise ValueError(f"answer {row['answer']!r} is not one of {', '.join(words)}")
    return {
        "prompt": prompt(row["instruction"]),
        "candidates": [f" the correct answer is {word}." for word in words],
        "answer": words.index(answer),
    }
