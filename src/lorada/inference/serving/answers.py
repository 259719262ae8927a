"""Answers the prompts of a request together, and puts the answers into OpenAI's JSON."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lorada.inference.answer_text import AnswerText
from lorada.inference.serving.records import Record
from lorada.inference.serving.refusals import EngineFailed
from lorada.inference.serving.served import Ask, Served

LOWEST = -9999.0  # JSON has no infinity; OpenAI's API says this for the smallest


@dataclass(frozen=True)
class Piece:
    """New text of an answer.

    Attributes:
        index: the number of the prompt.
        text: what is new, which may be empty.
        finish: why the answer ended here: ``stop`` or ``length``; None if it goes on.
        logprobs: of all its tokens, at the end, if they were asked for.
    """

    index: int
    text: str = ""
    finish: str | None = None
    logprobs: dict[str, Any] | None = None


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
        last = {}
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                last[piece.index] = piece
        choices = []
        for index, text in enumerate(self._texts):
            turn = {"message": {"role": "assistant", "content": text.shown}}
            choices.append(self._choice(replace(last[index], text=text.shown), turn))
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def chunks(self, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """An object for each piece of an answer, and one with the numbers of tokens if wanted."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        if self._chat:
            turn = {"delta": {"role": "assistant", "content": ""}}
            yield {**head, "choices": [self._choice(Piece(0), turn)]}
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                turn = {"delta": {"content": piece.text} if piece.text else {}}
                yield {**head, "choices": [self._choice(piece, turn)]}
        if usage:
            yield {**head, "choices": [], "usage": self._usage()}

    async def _pieces(self) -> AsyncGenerator[Piece]:
        """The pieces of all answers as they come."""
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
                    piece = self._piece(index, now)
                    if piece.text or piece.finish:
                        yield piece
                    if piece.finish:
                        written.pop(index)()
        finally:
            for end in written.values():
                end()

    def _piece(self, index: int, now: Any) -> Piece:
        text, ask = self._texts[index], self._asks[index]
        ids, done = now.generated_tokens, now.is_finished()
        new = text.take(ids, done=done)
        if not (text.stopped or done):
            return Piece(index, new)
        ended = text.stopped or (ids and ids[-1] in self._served.ends)
        finish = "stop" if ended or len(ids) < ask.most else "length"
        logprobs = self._logprobs(text, ids, now.logprobs) if ask.logprobs else None
        return Piece(index, new, finish, logprobs)

    def _choice(self, piece: Piece, turn: dict[str, Any]) -> dict[str, Any]:
        text = turn if self._chat else {"text": piece.text}
        return {
            "index": piece.index, **text, "logprobs": piece.logprobs, "finish_reason": piece.finish
        }  # fmt: skip

    def _logprobs(self, text: AnswerText, ids: list[int], found: list[float]) -> dict[str, Any]:
        spelled = text.spelled(ids)
        tokens = [self._served.run.tokenizer.decode([one]) for one in ids[: len(spelled)]]
        numbers = [max(number, LOWEST) for number in found[: len(spelled)]]
        if not self._chat:
            return {"tokens": tokens, "token_logprobs": numbers}
        content = [
            {"token": token, "logprob": number, "bytes": list(own), "top_logprobs": []}
            for token, number, own in zip(tokens, numbers, spelled, strict=True)
        ]
        return {"content": content}

    def _usage(self) -> dict[str, int]:
        read, written = self._record.read, self._record.written
        both = {"prompt_tokens": read, "completion_tokens": written}
        return {**both, "total_tokens": read + written}
