"""The HTTP application: its addresses, what each does, and answers in OpenAI's JSON."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lorada.inference.answer_text import AnswerText
from lorada.inference.serving.requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    Kind,
    Refused,
    refusal_of,
    request_of,
)
from lorada.inference.serving.served import Ask, Classifier, Served, ask_of, failed
from lorada.support.files import json_lines

logger = logging.getLogger(__name__)

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/classify": ClassifyRequest,
}


class Server:
    """Answers requests to the names in ``served``, and classifies by ``classifiers``."""

    def __init__(
        self,
        served: Mapping[str, Served],
        classifiers: Mapping[str, Classifier] | None = None,
        *,
        key: str | None = None,
    ) -> None:
        """Load nothing; each request under ``/v1`` must bring the ``key``, if there is one."""
        self._key, self._created = (key or "").encode(), int(time.time())
        self.served = served
        self.names: dict[str, Served | Classifier] = {**served, **(classifiers or {})}

    def app(self) -> Starlette:
        """The application, for an ASGI server to run."""

        async def refuse(_: Request, error: Exception) -> Response:
            refusal = refusal_of(error)
            return JSONResponse(refusal.body, refusal.status_code)

        answering = [
            Route(at, partial(self._answer, kind), methods=["POST"]) for at, kind in KINDS.items()
        ]
        return Starlette(
            routes=[*answering, Route("/v1/models", self._models)],
            exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect, Exception), refuse),
            lifespan=self._stop_at_the_end,
        )

    @asynccontextmanager
    async def _stop_at_the_end(self, _: Starlette) -> AsyncIterator[None]:
        yield
        for served in self.served.values():
            await asyncio.to_thread(served.stop)

    async def _models(self, request: Request) -> Response:
        """All names."""
        self._check_key(request)
        head = {"object": "model", "created": self._created, "owned_by": "lorada"}
        listed = [{"id": name, **head} for name in self.names]
        return JSONResponse({"object": "list", "data": listed})

    def _check_key(self, request: Request) -> None:
        """Refuse a request without the key of the server, if it has one."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip(" ").encode(), self._key)
        if self._key and not (same and scheme.lower() == "bearer"):
            said = "no valid API key: send Authorization: Bearer KEY"
            raise Refused(401, said, code="invalid_api_key")

    async def _answer(self, kind: Kind, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        self._check_key(request)
        body = request_of(kind, await request.body())
        if body.model not in self.names:
            said = f"no model {body.model[:100]!r} here; there are {', '.join(self.names)}"
            raise Refused(404, said, code="model_not_found", param="model")
        named = self.names[body.model]
        # In threads: others are answered while long texts are made tokens, or labelled.
        if isinstance(body, ClassifyRequest) and isinstance(named, Classifier):
            return JSONResponse(await asyncio.to_thread(named.classify, body.rows))
        if isinstance(body, ClassifyRequest) or isinstance(named, Classifier):
            decoder = "/v1/chat/completions or /v1/completions"
            at = "/v1/classify" if isinstance(named, Classifier) else decoder
            raise Refused(400, f"{named.name} does not answer here: ask {at}", param="model")
        ask = await asyncio.to_thread(ask_of, named, body)
        answer = Answer(named, ask, body.stops, chat=isinstance(body, ChatRequest))
        if not body.stream:
            return JSONResponse(await _unless_closed(request, answer.whole()))
        usage = bool((body.stream_options or {}).get("include_usage"))
        return StreamingResponse(
            _events(answer.chunks(usage=usage)), media_type="text/event-stream"
        )


async def _events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    """The events of a streamed answer; a refusal is an event too."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield f"data: {json_lines([chunk])}\n"
        yield "data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, Refused):
            logger.exception("a stream failed")
        yield f"data: {json_lines([refusal_of(error).body])}\n"


async def _unless_closed(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of some work; when the client goes away it is given up, with an error."""

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, closing = asyncio.ensure_future(work), asyncio.ensure_future(closed())
    try:
        await asyncio.wait([working, closing], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        closing.cancel()


class Answer:
    """The answer to one request, whole or in chunks of a stream."""

    def __init__(self, served: Served, ask: Ask, stops: tuple[str, ...], *, chat: bool) -> None:
        """Begin with nothing; ``stops`` end the answer and are not part of it."""
        self._served, self._ask, self._chat = served, ask, chat
        # Texts of the run's own protocol end an answer too, and stay in it as in ``generate``.
        self._text = AnswerText(served.run.tokenizer, stops, served.stops)
        self._written = 0  # tokens
        kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": served.name,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        async with aclosing(self._pieces()) as pieces:
            *_, finish = [finish async for _, finish in pieces]
        text = self._text.shown
        turn = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {**self._head, "choices": [_choice(turn, finish)], "usage": self._usage()}

    async def chunks(self, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """An object for each piece of the answer, and one with the numbers of tokens if wanted."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        if self._chat:
            first = {"delta": {"role": "assistant", "content": ""}}
            yield {**head, "choices": [_choice(first, None)]}
        async with aclosing(self._pieces()) as pieces:
            async for text, finish in pieces:
                delta = {"delta": {"content": text} if text else {}}
                turn = delta if self._chat else {"text": text}
                yield {**head, "choices": [_choice(turn, finish)]}
        if usage:
            yield {**head, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        """The numbers of tokens, as OpenAI's API spells them."""
        read, written = len(self._ask.ids), self._written
        both = {"prompt_tokens": read, "completion_tokens": written}
        return {**both, "total_tokens": read + written}

    async def _pieces(self) -> AsyncGenerator[tuple[str, str | None]]:
        """The pieces of the answer as they come: new text, and with the last why it ends."""
        came: asyncio.Queue[Any] = asyncio.Queue()
        finish, end = None, self._served.begin(self._ask, came.put_nowait)
        try:
            while finish is None:
                now = await came.get()
                while not came.empty():  # only the latest counts: it has all tokens
                    now = came.get_nowait()
                if now.error is not None:
                    raise failed(now.error)
                ids, done = now.generated_tokens, now.is_finished()
                self._written = len(ids)
                text = self._text.take(ids, done=done)
                if self._text.stopped or done:
                    ended = self._text.stopped or (ids and ids[-1] in self._served.ends)
                    finish = "stop" if ended or len(ids) < self._ask.most else "length"
                if text or finish:
                    yield text, finish
        finally:
            end()


def _choice(turn: dict[str, Any], finish: str | None) -> dict[str, Any]:
    """The one choice of an object, with its text in ``turn``."""
    return {"index": 0, "logprobs": None, "finish_reason": finish, **turn}
