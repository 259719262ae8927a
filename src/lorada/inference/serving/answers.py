"""Answers the prompts of a request together, and puts the answers into OpenAI's JSON."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from lorada.inference.serving.engines import Ask, Progress
from lorada.inference.serving.pieces import Piece, Pieces
from lorada.inference.serving.records import Record
from lorada.inference.serving.refusals import EngineFailed
from lorada.inference.serving.served import Served

LOWEST = -9999.0  # JSON has no infinity; OpenAI's API says this for the smallest


async def answer_all(
    served: Served, asks: Sequence[Ask], stops: tuple[str, ...], record: Record
) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all answers as they come, each with the number of its prompt.

    Closing it ends all answers.
    """
    arrived = asyncio.Queue[tuple[int, Progress]]()
    answers = [Pieces(served, ask, stops) for ask in asks]
    written = {}  # what ends each answer
    try:
        for index, ask in enumerate(asks):
            tell = partial(lambda index, found: arrived.put_nowait((index, found)), index)
            written[index] = served.engine.begin(ask, tell)
        while written:
            index, found = await arrived.get()
            if index not in written:  # it has ended at a stop text
                continue
            if found.failed is not None:
                raise EngineFailed(found.failed)
            record.first_token()
            piece = answers[index].take(found)
            record.written += piece.written
            yield index, piece
            if piece.finish:
                written.pop(index)()
    finally:
        for end in written.values():
            end()


class Answer:
    """One request's answers in JSON, whole or in chunks of a stream."""

    def __init__(self, served: Served, record: Record, *, chat: bool, logprobs: bool) -> None:
        """Begin with nothing.

        Args:
            served: who answers.
            record: counts the tokens.
            chat: whether it is a turn of a chat, else a completion.
            logprobs: whether log-probabilities are wanted.
        """
        self.record, self.chat = record, chat
        self._tokenizer, self._wants_logprobs = served.run.tokenizer, logprobs
        kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": served.name,
        }  # fmt: skip

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """The body of an answer that is not streamed; one piece is one prompt's whole answer."""
        choices = [
            self._choice(index, piece, {"message": {"role": "assistant", "content": piece.text}})
            for index, piece in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def begin(self) -> dict[str, Any]:
        """The first chunk of a streamed turn of a chat, which says whose turn it is."""
        turn = {"delta": {"role": "assistant", "content": ""}}
        return self._chunk([self._choice(0, Piece(), turn)])

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A chunk with a new piece of the answer to prompt number ``index``."""
        turn = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk([self._choice(index, piece, turn)])

    def last(self) -> dict[str, Any]:
        """The chunk with the numbers of tokens, for those who ask for it."""
        return {**self._chunk([]), "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"} if self.chat else {}
        return {**self._head, **kind, "choices": choices}

    def _choice(self, index: int, piece: Piece, turn: dict[str, Any]) -> dict[str, Any]:
        text = turn if self.chat else {"text": piece.text}
        logprobs = self._logprobs(piece) if self._wants_logprobs else None
        return {"index": index, **text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _usage(self) -> dict[str, int]:
        read, written = self.record.read, self.record.written
        both = {"prompt_tokens": read, "completion_tokens": written}
        return {**both, "total_tokens": read + written}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        texts = [self._tokenizer.decode([token.id]) for token in piece.tokens]
        numbers = [max(token.logprob, LOWEST) for token in piece.tokens]
        if not self.chat:
            return {"tokens": texts, "token_logprobs": numbers}
        content = [
            {"token": text, "logprob": number, "bytes": list(token.bytes), "top_logprobs": []}
            for text, number, token in zip(texts, numbers, piece.tokens, strict=True)
        ]
        return {"content": content}
