"""Makes text of an engine's tokens, piece by piece, and ends it where a stop text begins.

OpenAI's API has each token's bytes beside its log-probability. The bytes of all tokens together are
the answer in UTF-8, also where a character has several tokens.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from lorada.inference.answer_text import UNFINISHED, AnswerText
from lorada.inference.serving.engines import Ask, Progress
from lorada.inference.serving.served import Served


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


@dataclass
class Piece:
    """A new part of an answer.

    Attributes:
        text: the text, which may be empty.
        written: how many tokens have come since the last piece.
        tokens: those that wrote the text, if log-probabilities were asked for.
        finish: why the answer ended: ``stop`` or ``length``; None if it goes on.
    """

    text: str = ""
    written: int = 0
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, new: "Piece") -> None:
        """Take what comes behind it."""
        self.text, self.tokens = self.text + new.text, self.tokens + new.tokens
        self.finish = new.finish


class Pieces:
    """Makes the pieces of one answer; their texts together are the answer."""

    def __init__(self, served: Served, ask: Ask, stops: tuple[str, ...]) -> None:
        """Begin with nothing.

        Args:
            served: who answers.
            ask: what is asked.
            stops: texts that end the answer and are not part of it. Those of the run's own protocol
                end it and stay in it, as in ``lorada generate``.
        """
        self._served, self._ask, self._stops = served, ask, stops
        self._answer = AnswerText(served.run.tokenizer)
        self._shown, self._counted = "", 0
        self._read = 0  # tokens for which it is known whether they end within a character
        # The bytes of each token that is spelled, and the characters of the text until its end.
        self._spelled: list[tuple[bytes, int]] = []
        self._given = 0  # tokens

    def take(self, now: Progress) -> Piece:
        """What is new. The engine may skip some progress: the answer is the same."""
        text, finish = self._text_of(now)
        piece = Piece(written=len(now.ids) - self._counted, finish=finish)
        self._counted = len(now.ids)
        if text.startswith(self._shown):
            piece.text = text[len(self._shown) :]
            self._shown = text
        if self._ask.logprobs and (piece.text or finish):
            self._spell(now.ids, last=finish is not None)
            piece.tokens = self._new_tokens(now, last=finish is not None)
        return piece

    def _text_of(self, now: Progress) -> tuple[str, str | None]:
        """The text of the tokens so far that stays, and why the answer ended, if it did."""
        answer = self._answer
        text = answer.whole(now.ids) if now.done else answer.settled(now.ids)
        whole = self._until_stop(text.rstrip(UNFINISHED))
        if whole is not None:
            return whole, "stop"
        if not now.done:
            return self._before_stop(text), None
        ended = bool(now.ids) and now.ids[-1] in self._served.ends
        return text, "stop" if ended or len(now.ids) < self._ask.most else "length"

    def _until_stop(self, text: str) -> str | None:
        """The text until the stop text that is complete first; None if there is none."""
        # Where each is complete, and where the answer then ends.
        found = [(text.index(s) + len(s), text.index(s)) for s in self._stops if s in text]
        found += [(text.index(s) + len(s),) * 2 for s in self._served.stops if s in text]
        return text[: min(found)[1]] if found else None

    def _before_stop(self, text: str) -> str:
        """The text without what may be the beginning of a stop text."""
        held = 0
        for stop in self._stops:
            sizes = range(min(len(stop) - 1, len(text)), 0, -1)
            held = max(held, next((size for size in sizes if text.endswith(stop[:size])), 0))
        return text[: len(text) - held]

    def _spell(self, ids: list[int], *, last: bool) -> None:
        """Find the bytes of tokens; those that end within a character wait for its end."""
        answer = self._answer
        for count in range(max(self._read, 1), len(ids) + 1):  # the latest may be the last now
            text, start = answer.whole(ids[:count]), len(self._spelled)
            if text == answer.settled(ids[:count]) or (last and count == len(ids)):
                new = text[self._spelled[-1][1] if start else 0 :]
                own = [answer.own_bytes(token) for token in ids[start:count]]
                # The text has others in place of bytes that are no text. Else it is right: a
                # tokenizer may leave out a blank, as before the first word.
                if UNFINISHED not in new and b"".join(own) != new.encode():
                    own = [*[b""] * (len(own) - 1), new.encode()]
                self._spelled += [(each, len(text)) for each in own]
        self._read = len(ids)

    def _new_tokens(self, now: Progress, *, last: bool) -> list[Token]:
        """The tokens of the text that is shown now; of the last one a stop text may cut bytes."""
        given, shown = self._given, self._shown
        found = [own for own, end in self._spelled[given:] if end <= len(shown)]
        if last:
            behind = given + len(found)
            left = shown[self._spelled[behind - 1][1] if behind else 0 :]
            size = len(left.replace(UNFINISHED, "?").encode())  # one byte for what is no text
            for own, _ in self._spelled[behind:]:
                if size > 0:
                    found.append(own[:size])
                size -= len(own)
        self._given += len(found)
        tokens = zip(now.ids[given:], found, now.logprobs[given:], strict=False)
        return [Token(*token) for token in tokens]
