"""Free responses: how long they are, and the metric that their length asks for."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lorada.data.rows import Form, Row

FREE: tuple[Form, ...] = ("messages", "prompt")  # forms whose right answer is a free text
CHUNK = 1000  # texts tokenised at once
MOST_WORDS = 5  # of a response that an answer can be expected to equal
# A word; in scripts that put no blanks between words (Thai, Chinese, Japanese), a letter.
ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")


def responses(rows: Sequence[Row], form: Form) -> Iterator[str]:
    """The texts that a model learns to write: responses, and the assistant's turns of chats."""
    for row in rows if form in FREE else ():
        if form == "prompt":
            yield str(row["response"])
            continue
        for turn in row["messages"]:
            if turn["role"] == "assistant" and isinstance(turn["content"], str):
                yield turn["content"]


def longest_response(rows: Sequence[Row], form: Form, tokenizer: Any) -> int:
    """How many tokens the longest response has; 0 where there is none."""
    texts, longest = list(responses(rows, form)), 0
    for start in range(0, len(texts), CHUNK):
        found = tokenizer(texts[start : start + CHUNK], add_special_tokens=False, verbose=False)
        longest = max(longest, *map(len, found["input_ids"]))
    return longest


def usual_metric(rows: Sequence[Row], form: Form) -> tuple[str, str]:
    """The metric for free responses like those of some training rows, and the reason for it."""
    if any(len(WORD.findall(text)) > MOST_WORDS for text in responses(rows, form)):
        return "loss", "a response of the training rows is longer than five words"
    return "exact_match", "no response of the training rows is longer than five words"


def cut_at(count: int, answers: int, limit: int) -> str:
    """Says how many of some answers were cut because they were as long as they may be."""
    return f"{count} of {answers} answers {'was' if count == 1 else 'were'} cut at {limit} tokens"
