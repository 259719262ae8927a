"""Makes text of an engine's tokens, piece by piece, and ends it where a stop text begins."""

from dataclasses import dataclass, field

from lorada.inference.answer_text import UNFINISHED, AnswerText
from lorada.inference.serving.engines import Ask, Progress
from lorada.inference.serving.served import Served
from lorada.inference.serving.tokens import Token, Tokens


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
        self._tokens = Tokens(self._answer) if ask.logprobs else None
        self._shown, self._counted = "", 0

    def take(self, now: Progress) -> Piece:
        """What is new. The engine may skip some progress: the answer is the same."""
        text, finish = self._text_of(now)
        piece = Piece("", len(now.ids) - self._counted, finish=finish)
        self._counted = len(now.ids)
        if text.startswith(self._shown):
            piece.text = text[len(self._shown) :]
            self._shown = text
        if self._tokens and (piece.text or finish):
            piece.tokens = self._tokens.take(now, self._shown, finish)
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
