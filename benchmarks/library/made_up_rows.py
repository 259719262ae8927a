"""Rows of made-up words, of as many tokens as a benchmark asks for."""

import json
import random
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

SYLLABLES = [start + vowel for start in "bdfgklmnprstvz" for vowel in "aeiou"]
WORDS, MOST_TRIES = 500, 200


class Words:
    """Draws texts of a given number of tokens; the same seed draws the same texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.random = random.Random(seed)
        drawn = [
            " " + "".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 3)))
            for _ in range(WORDS)
        ]
        ids = tokenizer(drawn, add_special_tokens=False)["input_ids"]
        self.sizes = {word: len(one) for word, one in zip(drawn, ids, strict=True)}
        self.words = sorted(self.sizes, key=lambda word: (self.sizes[word], word))
        least = self.sizes[self.words[0]]
        self.shortest = [word for word in self.words if self.sizes[word] == least]

    def text(self, tokens: int) -> str:
        """Words of at most as many tokens, and of as many if there are words of one token.

        There is at least one word, however many tokens it has.
        """
        chosen: list[str] = []
        left = tokens
        while fitting := sum(self.sizes[word] <= left for word in self.words):
            chosen.append(self.words[self.random.randrange(fitting)])
            left -= self.sizes[chosen[-1]]
        return "".join(chosen) or self.random.choice(self.shortest)

    def size(self, text: str) -> int:
        """How many tokens a text of these words has."""
        return sum(self.sizes[f" {word}"] for word in text.split())


def training_rows(
    tokenizer: PreTrainedTokenizerBase, lengths: list[int], seed: int = 0
) -> list[dict[str, Any]]:
    """A prompt and a response for each length in tokens; a quarter of it is learned."""
    words = Words(tokenizer, seed)
    rows = []
    for length in lengths:
        response = max(1, length // 4 - 1)  # the end token is learned too
        prompt = words.text(length - response - 2) + ":"
        rows.append({"prompt": prompt, "response": words.text(response)})
    return rows


def questions(
    tokenizer: PreTrainedTokenizerBase, count: int, longest: int = 64, seed: int = 1
) -> list[dict[str, Any]]:
    """Questions of a prompt with 2 to 5 candidates, any of which may be the right one.

    The candidates of a question have the same number of tokens, so that the sum of their
    log-probabilities and the mean choose the same.
    """
    words = Words(tokenizer, seed)
    rows = []
    for _ in range(count):
        prompt = words.text(words.random.randint(longest // 3, longest)) + "\nAnswer:"
        wanted, size = words.random.randint(2, 5), words.random.randint(1, 4)
        candidates = [words.text(size)]
        for _ in range(MOST_TRIES):
            text = words.text(size)
            if words.size(text) == words.size(candidates[0]) and text not in candidates:
                candidates.append(text)
            if len(candidates) == wanted:
                break
        answer = words.random.randrange(len(candidates))
        rows.append({"prompt": prompt, "candidates": candidates, "answer": answer})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
