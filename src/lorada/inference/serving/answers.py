"""Answers the prompts of a request together, and puts the answers into OpenAI's JSON."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from lorada.inference.answer_text import AnswerText
from lorada.inference.serving.records import Record
from lorada.inference.serving.requests import EngineFailed
from lorada.inference.serving.served import Ask, Served


class Answers:
    """The answers to the prompts of one request, whole or in chunks of a stream."""

    def __init__(
        self, served: Served, asks: list[Ask], stops: tuple[str, ...], record: Record, *, chat: bool
    ) -> None:
        """Begin with nothing; ``stops`` end an answer and are not part of it."""
        self._served, self._asks, self._record, self._chat = served, asks, record, chat
        # Texts of the run's own protocol end an answer too, and stay in it as in ``generate``.
        tokenizer = served.run.tokenizer
        self._texts = [AnswerText(tokenizer, stops, served.stops) for _ in asks]
        kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": served.name,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The answers in one object."""
        async with aclosing(self._pieces()) as pieces:
            last = {choice["index"]: choice async for _, choice in pieces}
        choices = []
        for index, text in enumerate(self._texts):
            turn = {"message": {"role": "assistant", "content": text.shown}}
            choices.append({**last[index], **(turn if self._chat else {"text": text.shown})})
        return {**self._head, "choices": choices, "usage": self._record.usage}

    async def chunks(self, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """An object for each piece of an answer, and one with the numbers of tokens if wanted."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        if self._chat:
            first = {"index": 0, "logprobs": None, "finish_reason": None}
            turn = {"delta": {"role": "assistant", "content": ""}}
            yield {**head, "choices": [{**first, **turn}]}
        async with aclosing(self._pieces()) as pieces:
            async for text, choice in pieces:
                turn = {"delta": {"content": text} if text else {}}
                yield {**head, "choices": [{**choice, **(turn if self._chat else {"text": text})}]}
        if usage:
            yield {**head, "choices": [], "usage": self._record.usage}

    async def _pieces(self) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """The pieces of all answers as they come: new text, and the choice that it belongs to."""
        newest: dict[int, Any] = {}
        arrived = asyncio.Event()
        written = {}  # what ends each answer
        counted = [0] * len(self._asks)  # tokens

        def tell(index: int, now: Any) -> None:
            newest[index] = now  # only the latest counts: it has all tokens
            arrived.set()

        try:
            for index, ask in enumerate(self._asks):
                written[index] = self._served.begin(ask, partial(tell, index))
            while written:
                await arrived.wait()
                arrived.clear()
                while newest:
                    index, now = newest.popitem()
                    if now.error is not None:
                        raise EngineFailed(now.error)
                    self._record.first_token()
                    if index not in written:
                        continue  # it has ended at a stop text
                    self._record.written += len(now.generated_tokens) - counted[index]
                    counted[index] = len(now.generated_tokens)
                    text, choice = self._piece(index, now)
                    if text or choice["finish_reason"]:
                        yield text, choice
                    if choice["finish_reason"]:
                        written.pop(index)()
        finally:
            for end in written.values():
                end()

    def _piece(self, index: int, now: Any) -> tuple[str, dict[str, Any]]:
        text, ids, done = self._texts[index], now.generated_tokens, now.is_finished()
        new, finish = text.take(ids, done=done), None
        if text.stopped or done:
            ended = text.stopped or (ids and ids[-1] in self._served.ends)
            finish = "stop" if ended or len(ids) < self._asks[index].most else "length"
        return new, {"index": index, "logprobs": None, "finish_reason": finish}
