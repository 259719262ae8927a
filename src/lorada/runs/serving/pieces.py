"""Makes text of an engine's tokens, piece by piece, and ends it where a stop text begins."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from lorada.runs.inference.stream import UNFINISHED
from lorada.runs.serving.engine import Ask, Progress
from lorada.runs.serving.served import Served


@dataclass
class Piece:
    """A new part of an answer.

    Attributes:
        text: the text, which may be empty.
        ids: the tokens that have come since the last piece.
        logprobs: their log-probabilities, if those were asked for.
        finish: why the answer ended: ``stop`` or ``length``; None if it goes on.
    """

    text: str
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
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
    shown, sent, begun = "", 0, False
    async with aclosing(served.engine.write(ask)) as progress:
        async for now in progress:
            if not begun:
                begun = True
                yield Piece("")
            if waits and not now.done:
                continue
            text, finish = _text_of(served, ask, now, stops)
            new = text[len(shown) :] if text.startswith(shown) else ""
            if finish or new:
                yield Piece(new, now.ids[sent:], now.logprobs[sent:], finish)
                shown, sent = shown + new, len(now.ids)
            if finish:
                return


def _text_of(
    served: Served, ask: Ask, now: Progress, stops: tuple[str, ...]
) -> tuple[str, str | None]:
    """The text of the tokens so far that stays, and why the answer ended, if it did."""
    text = served.run.tokenizer.decode(now.ids, skip_special_tokens=True)
    whole = _end(text, stops, served.stops)
    if whole is not None:
        return whole, "stop"
    if not now.done:
        return _settled(text, stops), None
    ended = bool(now.ids) and now.ids[-1] in served.ends
    return text, "stop" if ended or len(now.ids) < ask.most else "length"


def _end(text: str, stops: Iterable[str], kept: Iterable[str]) -> str | None:
    """The text until the first stop text in it; None if there is none."""
    ends = [text.index(stop) for stop in stops if stop in text]
    ends += [text.index(stop) + len(stop) for stop in kept if stop in text]
    return text[: min(ends)] if ends else None


def _settled(text: str, stops: Iterable[str]) -> str:
    """The part of a text that stays, whatever comes next.

    The first bytes of a character, and what may be the beginning of a stop text, are left out.
    """
    text = text.rstrip(UNFINISHED)
    held = 0
    for stop in stops:
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        held = max(held, next((size for size in sizes if text.endswith(stop[:size])), 0))
    return text[: len(text) - held]
