"""The HTTP application: its addresses, and what each does."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lorada.inference.serving.answering import answer_all, in_time, unless_closed, whole_answers
from lorada.inference.serving.answers import Answer
from lorada.inference.serving.engine import Ask
from lorada.inference.serving.limits import Limits, Places, body_of, check_key
from lorada.inference.serving.metrics import Metrics
from lorada.inference.serving.mistakes import what_is_wrong
from lorada.inference.serving.prompts import asks_of
from lorada.inference.serving.record import Record
from lorada.inference.serving.refusals import HANDLERS, Refused, log_fault, refusal_of
from lorada.inference.serving.requests import ChatRequest, CompletionRequest
from lorada.inference.serving.served import Served
from lorada.support.files import json_lines

Kind = type[ChatRequest] | type[CompletionRequest]
Body = ChatRequest | CompletionRequest


class Server:
    """Answers requests to the names in ``served``."""

    def __init__(
        self, served: Mapping[str, Served], limits: Limits | None = None, key: str | None = None
    ) -> None:
        """Load nothing: the names are there already.

        Args:
            served: what answers, by name.
            limits: what a request may ask for; None for the usual limits.
            key: what every request under ``/v1`` must bring; None for nothing.
        """
        self.served, self.limits, self._key = served, limits or Limits(), key
        self.metrics, self._places = Metrics(), Places(self.limits.requests)
        self.metrics.watch(lambda: self._places.taken)
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The application, for an ASGI server to run."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._numbers),
            ],
            exception_handlers=HANDLERS,
            lifespan=self._stop_at_the_end,
        )

    @asynccontextmanager
    async def _stop_at_the_end(self, _: Starlette) -> AsyncIterator[None]:
        yield
        for served in self.served.values():
            await asyncio.to_thread(served.engine.stop)

    async def _models(self, request: Request) -> Response:
        check_key(request, self._key)
        return JSONResponse({"object": "list", "data": [self._about(n) for n in self.served]})

    async def _model(self, request: Request) -> Response:
        check_key(request, self._key)
        return JSONResponse(self._about(self._named(request.path_params["name"]).name))

    def _about(self, name: str) -> dict[str, Any]:
        head = {"id": name, "object": "model", "created": self._created, "owned_by": "lorada"}
        return head | self.served[name].described

    def _named(self, name: str) -> Served:
        if name not in self.served:
            known = ", ".join(self.served)
            raise Refused(
                404, f"no model {name[:100]!r} here; there are {known}", code="model_not_found",
                param="model",
            )  # fmt: skip
        return self.served[name]

    async def _health(self, _: Request) -> Response:
        down = [name for name, one in self.served.items() if not one.engine.running()]
        if down:
            return JSONResponse({"status": "failed", "models": down}, 503)
        return JSONResponse({"status": "ok"})

    async def _numbers(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        """Answer one request, whole or as a stream, within the limits."""
        record = Record(self.metrics, request.url.path)
        with ExitStack() as at_the_end:
            at_the_end.callback(record.end)
            try:
                body = await self._body(request, kind, record)
                served = self._named(body.model)
                record.model = served.name
                async with in_time(self.limits.seconds - record.seconds):
                    # In a thread: others are answered while a long prompt is made tokens.
                    asks = await asyncio.to_thread(asks_of, served, body, self.limits)
                at_the_end.enter_context(self._places.take(len(asks)))
                record.read = sum(len(ask.ids) for ask in asks)
                answer = Answer(
                    served.name, kind is ChatRequest, served.run.tokenizer, asks[0].logprobs,
                    record,
                )  # fmt: skip
                if body.stream:
                    events = self._events(served, asks, body, answer)
                    return _Stream(events, at_the_end.pop_all())
                async with in_time(self.limits.seconds - record.seconds):
                    work = whole_answers(served, asks, body.stops, record)
                    return JSONResponse(answer.whole(await unless_closed(request, work)))
            except BaseException as error:
                record.status = refusal_of(error).status
                raise

    async def _body(self, request: Request, kind: Kind, record: Record) -> Body:
        """What a request says, if it may be answered."""
        check_key(request, self._key)
        async with in_time(self.limits.seconds - record.seconds):
            text = await body_of(request, self.limits.body)
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            said, field = what_is_wrong(error)
            raise Refused(400, said, param=field) from None

    async def _events(
        self, served: Served, asks: list[Ask], body: Body, answer: Answer
    ) -> AsyncGenerator[str]:
        """The events of a streamed answer; an error is an event too."""
        record = answer.record
        try:
            async with in_time(self.limits.seconds - record.seconds):
                if answer.chat:
                    yield _event(answer.begin())
                work = answer_all(served, asks, body.stops, record, at_once=False)
                async with aclosing(work) as found:
                    async for index, piece in found:
                        if piece.text or piece.finish:
                            yield _event(answer.chunk(piece, index))
                if body.stream_options and body.stream_options.include_usage:
                    yield _event(answer.last())
                yield "data: [DONE]\n\n"
        except BaseException as error:
            refusal = refusal_of(error)
            record.status = refusal.status
            if not isinstance(error, Exception):  # the client went away
                raise
            log_fault(error)
            yield _event(refusal.body())


class _Stream(StreamingResponse):
    """Events, and what is to be done when they are over, also if none could be sent."""

    def __init__(self, events: AsyncGenerator[str], at_the_end: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._at_the_end = at_the_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._at_the_end:
            await super().__call__(scope, receive, send)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json_lines([data]).strip()}\n\n"
