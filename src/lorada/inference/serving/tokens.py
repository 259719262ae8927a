"""The tokens of an answer with their bytes, as OpenAI's API has them beside log-probabilities.

The bytes of all tokens together are the answer in UTF-8, also where a character has several tokens.
"""

from bisect import bisect_right
from typing import NamedTuple

from lorada.inference.answer_text import UNFINISHED, AnswerText
from lorada.inference.serving.engines import Progress


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        id: its number.
        bytes: what it wrote of the answer; nothing for a special token.
        logprob: its log-probability.
    """

    id: int
    bytes: bytes
    logprob: float


class Tokens:
    """Finds what each token of one answer wrote.

    Tokens that end within a character are spelled together with those that end it.
    """

    def __init__(self, text: AnswerText) -> None:
        self._text = text
        self._read = 0  # tokens
        self._bytes: list[bytes] = []  # of the tokens that are spelled
        self._ends: list[int] = []  # characters of the answer with each of them, or its group
        self._given = 0  # tokens

    def take(self, now: Progress, answer: str, finish: str | None) -> list[Token]:
        """The tokens of the answer so far that were not taken before.

        Args:
            now: all tokens that have come.
            answer: the text so far, which may end before they do.
            finish: why the answer ends, or None if it goes on.
        """
        for count in range(self._read + 1, len(now.ids) + 1):
            text = self._text.whole(now.ids[:count])
            if text == self._text.settled(now.ids[:count]):
                self._spell(now.ids[len(self._bytes) : count], text)
        self._read = len(now.ids)
        if finish:
            self._spell(now.ids[len(self._bytes) :], self._text.whole(now.ids))
        end = bisect_right(self._ends, len(answer))
        found = self._bytes[self._given : end]
        if finish:
            found += self._cut(end, answer)
        tokens = zip(now.ids[self._given :], found, now.logprobs[self._given :], strict=False)
        self._given += len(found)
        return [Token(*token) for token in tokens]

    def _spell(self, ids: list[int], text: str) -> None:
        """Share the new characters of the text among some tokens."""
        new = text[self._ends[-1] if self._ends else 0 :]
        own, spelled = [self._text.own_bytes(token) for token in ids], new.encode()
        # The text has others in place of bytes that are no text. Else it is right: a tokenizer may
        # leave out a blank, as before the first word.
        if UNFINISHED not in new and b"".join(own) != spelled:
            own = [*[b""] * (len(ids) - 1), spelled]
        self._bytes += own
        self._ends += [len(text)] * len(ids)

    def _cut(self, end: int, answer: str) -> list[bytes]:
        """What the tokens from number ``end`` on wrote of an answer that a stop text cut."""
        rest = answer[self._ends[end - 1] if end else 0 :]
        left, found = rest.replace(UNFINISHED, "?").encode(), []  # one byte for what is no text
        for own in self._bytes[end:]:
            if not left:
                break
            found.append(own[: len(left)])
            left = left[len(own) :]
        return found
