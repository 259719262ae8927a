"""The answers' JSON, as OpenAI's API spells it: whole, and in chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorada.inference.serving.pieces import Piece
from lorada.inference.serving.record import Record

LOWEST = -9999.0  # JSON has no infinity; OpenAI's API says this for the smallest


@dataclass
class Answer:
    """One request's answers, whole or in chunks.

    Attributes:
        model: the name that answers.
        chat: whether it is a turn of a chat, else a completion.
        tokenizer: that of the model.
        logprobs: whether log-probabilities are wanted.
        record: counts the tokens.
    """

    model: str
    chat: bool
    tokenizer: PreTrainedTokenizerBase
    logprobs: bool
    record: Record
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """The body of an answer that is not streamed; one piece is one prompt's whole answer."""
        choices = []
        for index, piece in enumerate(answers):
            text = {"message": _message(piece.text)} if self.chat else {"text": piece.text}
            choices.append({"index": index, **text, **self._common(piece)})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage()}

    def begin(self) -> dict[str, Any]:
        """The first chunk of a streamed turn of a chat, which says whose turn it is."""
        return self._chunk({"delta": _message("")}, Piece(""), 0)

    def chunk(self, piece: Piece, index: int) -> dict[str, Any]:
        """A chunk with a new piece of the answer to prompt number ``index``."""
        text: dict[str, Any] = {"text": piece.text}
        if self.chat:
            text = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk(text, piece, index)

    def last(self) -> dict[str, Any]:
        """The chunk with the numbers of tokens, for those who ask for it."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """The numbers of tokens."""
        read, written = self.record.read, self.record.written
        return {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written
        }  # fmt: skip

    def _chunk(self, text: dict[str, Any], piece: Piece, index: int) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        choice = {"index": index, **text, **self._common(piece)}
        return {**self._head(kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}", "object": kind, "created": self.created,
            "model": self.model,
        }  # fmt: skip

    def _common(self, piece: Piece) -> dict[str, Any]:
        return {
            "logprobs": self._logprobs(piece) if self.logprobs else None,
            "finish_reason": piece.finish,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        texts = [self.tokenizer.decode([token.id]) for token in piece.tokens]
        numbers = [max(token.logprob, LOWEST) for token in piece.tokens]
        if not self.chat:
            return {"tokens": texts, "token_logprobs": numbers}
        return {
            "content": [
                {
                    "token": text,
                    "logprob": number,
                    "bytes": list(token.bytes),
                    "top_logprobs": [],
                }
                for text, number, token in zip(texts, numbers, piece.tokens, strict=True)
            ]
        }


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
