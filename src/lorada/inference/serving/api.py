"""The HTTP application: its addresses, what each does, and answers in OpenAI's JSON."""

import asyncio
import hmac
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
from starlette.types import Receive, Scope, Send

from lorada.inference.answer_text import AnswerText
from lorada.inference.serving.requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EngineFailed,
    Kind,
    Record,
    Refused,
    refusal_of,
    request_of,
)
from lorada.inference.serving.served import Ask, Classifier, Served, asks_of
from lorada.support.files import json_lines

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/classify": ClassifyRequest,
    "/classify": ClassifyRequest,  # vLLM's own address has no version
}


class Server:
    """Answers requests to the names in ``served``, and classifies by ``classifiers``."""

    def __init__(
        self,
        served: Mapping[str, Served],
        classifiers: Mapping[str, Classifier] | None = None,
        *,
        tokens: int | None = None,
        key: str | None = None,
    ) -> None:
        """Load nothing: the names are there already.

        ``tokens`` are the most of an answer, None for what the model has room for. Each request
        under ``/v1`` must bring the ``key``, if there is one.
        """
        self.tokens, self._key, self._created = tokens, (key or "").encode(), int(time.time())
        self.served = served
        self.names: dict[str, Served | Classifier] = {**served, **(classifiers or {})}

    def app(self) -> Starlette:
        """The application, for an ASGI server to run."""

        async def refuse(_: Request, error: Exception) -> Response:
            return refusal_of(error).response()

        return Starlette(
            routes=[
                *(Route(at, Answering(self, kind), methods=["POST"]) for at, kind in KINDS.items()),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._models),
                Route("/health", self._health),
            ],
            exception_handlers={HTTPException: refuse, Exception: refuse},
            lifespan=self._stop_at_the_end,
        )

    @asynccontextmanager
    async def _stop_at_the_end(self, _: Starlette) -> AsyncIterator[None]:
        yield
        for served in self.served.values():
            await asyncio.to_thread(served.stop)

    async def _models(self, request: Request) -> Response:
        """All names, or the one in the address."""
        self.check_key(request)
        head = {"object": "model", "created": self._created, "owned_by": "lorada"}
        about = {name: {"id": name, **head, **one.described} for name, one in self.names.items()}
        if (name := request.path_params.get("name")) is None:
            return JSONResponse({"object": "list", "data": list(about.values())})
        return JSONResponse(about[self.named(name).name])

    async def _health(self, _: Request) -> Response:
        down = [name for name, one in self.served.items() if not one.running()]
        failed = {"status": "failed", "models": down}
        return JSONResponse(failed if down else {"status": "ok"}, 503 if down else 200)

    def named(self, name: str) -> Served | Classifier:
        """What answers to a name; one that nothing answers to is refused."""
        if name not in self.names:
            said = f"no model {name[:100]!r} here; there are {', '.join(self.names)}"
            raise Refused(404, said, code="model_not_found", param="model")
        return self.names[name]

    def check_key(self, request: Request) -> None:
        """Refuse a request without the key of the server, if it has one."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip(" ").encode(), self._key)
        if self._key and not (same and scheme.lower() == "bearer"):
            said = "no valid API key: send Authorization: Bearer KEY"
            raise Refused(401, said, code="invalid_api_key")


class Answering:
    """Answers the requests to an address, whole or as a stream, as an ASGI application."""

    def __init__(self, server: Server, kind: Kind) -> None:
        self._server, self._kind = server, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever becomes of it, the log has a line."""
        request, record = Request(scope, receive), Record(scope["path"])
        try:
            try:
                response = await self._response(request, record)
            except Exception as error:
                refusal = refusal_of(error)
                record.status, response = refusal.status_code, refusal.response()
            await response(scope, receive, send)
        finally:
            record.end()

    async def _response(self, request: Request, record: Record) -> Response:
        self._server.check_key(request)
        body = request_of(self._kind, await request.body())
        named = self._server.named(body.model)
        record.model = named.name
        # In threads: others are answered while long texts are made tokens, or labelled.
        if isinstance(body, ClassifyRequest) and isinstance(named, Classifier):
            whole = await asyncio.to_thread(named.classify, body.rows, record)
        elif isinstance(named, Served) and not isinstance(body, ClassifyRequest):
            asks = await asyncio.to_thread(asks_of, named, body, self._server.tokens)
            record.read = sum(len(ask.ids) for ask in asks)
            answer = Answers(named, asks, body.stops, record, chat=isinstance(body, ChatRequest))
            if body.stream:
                usage = bool(body.stream_options and body.stream_options.include_usage)
                events = self._events(answer.chunks(usage=usage), record)
                return StreamingResponse(events, media_type="text/event-stream")
            whole = await _unless_closed(request, answer.whole())
        else:
            decoder = "/v1/chat/completions or /v1/completions"
            at = "/v1/classify" if isinstance(named, Classifier) else decoder
            raise Refused(400, f"{named.name} does not answer here: ask {at}", param="model")
        record.status = 200
        return JSONResponse(whole)

    async def _events(
        self, chunks: AsyncGenerator[dict[str, Any]], record: Record
    ) -> AsyncGenerator[str]:
        """The events of a streamed answer; an error is an event too."""
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield f"data: {json_lines([chunk])}\n"
            record.status = 200
            yield "data: [DONE]\n\n"
        except Exception as error:
            refusal = refusal_of(error)
            record.status = refusal.status_code
            yield f"data: {json_lines([refusal.body])}\n"


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
        came: asyncio.Queue[int] = asyncio.Queue()
        newest: dict[int, Any] = {}  # only the latest of each counts: it has all tokens
        written = {}  # what ends each answer
        counted = [0] * len(self._asks)  # tokens

        def tell(index: int, now: Any) -> None:
            if index not in newest:
                came.put_nowait(index)
            newest[index] = now

        try:
            for index, ask in enumerate(self._asks):
                written[index] = self._served.begin(ask, partial(tell, index))
            while written:
                index = await came.get()
                now = newest.pop(index)
                if now.error is not None:
                    raise EngineFailed(now.error)
                if index not in written:
                    continue  # it has ended at a stop text
                counted[index] = len(now.generated_tokens)
                self._record.written = sum(counted)
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
