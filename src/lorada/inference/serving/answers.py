"""Answers the prompts of a request together, and puts the answers into OpenAI's JSON."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from lorada.inference.serving.engines import Ask, Progress
from lorada.inference.serving.pieces import Piece, Pieces
from lorada.inference.serving.records import Record
from lorada.inference.serving.refusals import EngineFailed
from lorada.inference.serving.served import Served

LOWEST = -9999.0  # JSON has no infinity; OpenAI's API says this for the smallest


class Answers:
    """The answers to the prompts of one request, whole or in chunks of a stream."""

    def __init__(
        self, served: Served, asks: list[Ask], stops: tuple[str, ...], record: Record, *, chat: bool
    ) -> None:
        """Begin with nothing.

        Args:
            served: who answers.
            asks: what is asked, for each prompt.
            stops: texts that end an answer and are not part of it.
            record: counts the tokens.
            chat: whether it is a turn of a chat, else completions.
        """
        self._served, self._asks, self._stops = served, asks, stops
        self._record, self._chat = record, chat
        kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": served.name,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The answers in one object."""
        whole = [Piece() for _ in self._asks]
        at_once = not (self._stops or self._served.stops)
        async with aclosing(self._pieces(at_once=at_once)) as pieces:
            async for index, piece in pieces:
                whole[index].add(piece)
        turns = [{"message": {"role": "assistant", "content": piece.text}} for piece in whole]
        choices = list(map(self._choice, range(len(whole)), whole, turns))
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def chunks(self, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """An object for each piece of an answer, and one with the numbers of tokens if wanted."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        if self._chat:
            turn = {"delta": {"role": "assistant", "content": ""}}
            yield {**head, "choices": [self._choice(0, Piece(), turn)]}
        async with aclosing(self._pieces(at_once=False)) as pieces:
            async for index, piece in pieces:
                if piece.text or piece.finish:
                    turn = {"delta": {"content": piece.text} if piece.text else {}}
                    yield {**head, "choices": [self._choice(index, piece, turn)]}
        if usage:
            yield {**head, "choices": [], "usage": self._usage()}

    async def _pieces(self, *, at_once: bool) -> AsyncGenerator[tuple[int, Piece]]:
        """The pieces of all answers as they come, each with the number of its prompt.

        ``at_once`` is whether each answer may be one piece, at its end: less text is decoded.
        """
        newest: dict[int, Progress] = {}
        arrived = asyncio.Event()
        answers = [Pieces(self._served, ask, self._stops) for ask in self._asks]
        written = {}  # what ends each answer

        def tell(index: int, now: Progress) -> None:
            newest[index] = now  # only the latest counts: it has all tokens
            arrived.set()

        try:
            for index, ask in enumerate(self._asks):
                written[index] = self._served.engine.begin(ask, partial(tell, index))
            while written:
                await arrived.wait()
                arrived.clear()
                while newest:
                    index, now = newest.popitem()
                    if now.failed is not None:
                        raise EngineFailed(now.failed)
                    self._record.first_token()
                    if index not in written or (at_once and not now.done):
                        continue  # it has ended at a stop text, or its text can wait
                    piece = answers[index].take(now)
                    self._record.written += piece.written
                    yield index, piece
                    if piece.finish:
                        written.pop(index)()
        finally:
            for end in written.values():
                end()

    def _choice(self, index: int, piece: Piece, turn: dict[str, Any]) -> dict[str, Any]:
        text = turn if self._chat else {"text": piece.text}
        logprobs = self._logprobs(piece) if self._asks[0].logprobs else None
        return {"index": index, **text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        texts = [self._served.run.tokenizer.decode([token.id]) for token in piece.tokens]
        numbers = [max(token.logprob, LOWEST) for token in piece.tokens]
        if not self._chat:
            return {"tokens": texts, "token_logprobs": numbers}
        content = [
            {"token": text, "logprob": number, "bytes": list(token.bytes), "top_logprobs": []}
            for text, number, token in zip(texts, numbers, piece.tokens, strict=True)
        ]
        return {"content": content}

    def _usage(self) -> dict[str, int]:
        read, written = self._record.read, self._record.written
        both = {"prompt_tokens": read, "completion_tokens": written}
        return {**both, "total_tokens": read + written}
