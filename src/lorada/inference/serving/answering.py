"""Answers the prompts of one request at the same time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from starlette.requests import Request

from lorada.inference.serving.engine import Ask
from lorada.inference.serving.pieces import Piece, pieces
from lorada.inference.serving.record import Record
from lorada.inference.serving.refusals import CLOSED, Refused
from lorada.inference.serving.served import Served

Found = TypeVar("Found")
Arrived = asyncio.Queue[tuple[int, Piece] | Exception | None]


async def answer_all(
    served: Served, asks: Sequence[Ask], stops: tuple[str, ...], record: Record, *, at_once: bool
) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all answers as they come, each with the number of its prompt.

    Closing it ends all answers. ``at_once`` is as in ``pieces``.
    """
    arrived = Arrived()

    async def one(index: int, ask: Ask) -> None:
        try:
            async with aclosing(pieces(served, ask, stops, at_once=at_once)) as found:
                async for piece in found:
                    arrived.put_nowait((index, piece))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(one(index, ask)) for index, ask in enumerate(asks)]
    try:
        left = len(tasks)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
                continue
            record.first_token()
            record.written += item[1].written
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole_answers(
    served: Served, asks: Sequence[Ask], stops: tuple[str, ...], record: Record
) -> list[Piece]:
    """Each prompt's answer as one piece."""
    answers = [Piece("") for _ in asks]
    async with aclosing(answer_all(served, asks, stops, record, at_once=True)) as found:
        async for index, piece in found:
            answers[index].text += piece.text
            answers[index].tokens += piece.tokens
            answers[index].finish = piece.finish
    return answers


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """End a ``with`` block with a refusal when its time is over."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            yield
    except TimeoutError as error:
        said = "the time that this server gives a request is over"
        raise Refused(504, said, code="timeout") from error


async def unless_closed(request: Request, work: Awaitable[Found]) -> Found:
    """The result of ``work``, which is given up when the client goes away."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(CLOSED, "the client went away")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _closed(request: Request) -> None:
    """Wait until the client goes away; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
