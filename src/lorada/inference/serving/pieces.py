"""Makes text of an engine's tokens, piece by piece, and ends it where a stop text begins."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from lorada.inference.answer_text import UNFINISHED, AnswerText
from lorada.inference.serving.engine import Ask, Progress
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

    text: str
    written: int = 0
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None


async def pieces(
    served: Served, ask: Ask, stops: tuple[str, ...], *, at_once: bool
) -> AsyncGenerator[Piece]:
    """The pieces of one answer; their texts together are the answer.

    The first piece comes with the first token and may be empty.

    Args:
        served: who answers.
        ask: what is asked.
        stops: texts that end the answer and are not part of it. Those of the run's own protocol end
            it and stay in it, as in ``lorada generate``.
        at_once: whether the whole answer may come as one piece, at its end.
    """
    waits = at_once and not stops and not served.stops
    shown, counted, begun = "", 0, False
    answer = AnswerText(served.run.tokenizer)
    tokens = Tokens(answer) if ask.logprobs else None
    async with aclosing(served.engine.write(ask)) as progress:
        async for now in progress:
            if not begun:
                begun = True
                yield Piece("")
            if waits and not now.done:
                continue
            text, finish = _text_of(served, ask, answer, now, stops)
            new = text[len(shown) :] if text.startswith(shown) else ""
            if finish or new:
                shown += new
                own = tokens.take(now, shown, finish) if tokens else []
                yield Piece(new, len(now.ids) - counted, own, finish)
                counted = len(now.ids)
            if finish:
                return


def _text_of(
    served: Served, ask: Ask, answer: AnswerText, now: Progress, stops: tuple[str, ...]
) -> tuple[str, str | None]:
    """The text of the tokens so far that stays, and why the answer ended, if it did.

    The engine may skip some progress, so the end must be the same at whichever it is found.
    """
    text = answer.whole(now.ids) if now.done else answer.settled(now.ids)
    whole = _end(text.rstrip(UNFINISHED), stops, served.stops)
    if whole is not None:
        return whole, "stop"
    if not now.done:
        return _before_stop(text, stops), None
    ended = bool(now.ids) and now.ids[-1] in served.ends
    return text, "stop" if ended or len(now.ids) < ask.most else "length"


def _end(text: str, stops: Iterable[str], kept: Iterable[str]) -> str | None:
    """The text until the stop text that is complete first; None if there is none."""
    # Where each is complete, and where the answer then ends.
    found = [(text.index(s) + len(s), text.index(s)) for s in stops if s in text]
    found += [(text.index(s) + len(s), text.index(s) + len(s)) for s in kept if s in text]
    return text[: min(found)[1]] if found else None


def _before_stop(text: str, stops: Iterable[str]) -> str:
    """The text without what may be the beginning of a stop text."""
    held = 0
    for stop in stops:
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        held = max(held, next((size for size in sizes if text.endswith(stop[:size])), 0))
    return text[: len(text) - held]
