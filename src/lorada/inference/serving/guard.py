"""Stands in front of transformers' server: checks requests, and takes stop texts out of answers."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from lorada.inference.serving.requests import ROUTES, Body, RequestError, checked_fields, read_body
from lorada.inference.serving.served_models import ServedModels
from lorada.inference.serving.stop_texts import StreamCutter, cut_answer
from lorada.support.error_messages import out_of_memory

logger = logging.getLogger("uvicorn.error")  # where the server says what happens to it

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Routes that name a model and are otherwise left to the server.
NAMING = ("/load_model", "/v1/systemone")
OTHERS = ("/health", "/docs", "/openapi.json")


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: Any, models: ServedModels) -> None:
        self.app, self.models = app, models

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or say in one line what is wrong with it."""
        if scope["type"] != "http" or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except Exception as error:
            if started:  # nothing else can be said any more
                raise
            # An error that goes further up would end the connection, which the client's next
            # request uses too.
            await _refusal(error)(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check a request, load its model and pass it on to the server, cut at its stop texts.

        Paths that are not served, and fields that are wrong, are refused.
        """
        path = scope["path"]
        if path == "/v1/models":
            await JSONResponse(self.models.listed())(scope, receive, send)
            return
        if path in OTHERS:
            await self.app(scope, receive, send)
            return
        if path not in ROUTES and path not in NAMING:
            raise RequestError(f"{path} is not served here: ask {', '.join(ROUTES)}", status=404)
        body = read_body(await HttpRequest(scope, receive).body())
        body = {**body, "model": self.models.named(body)}
        if path in ROUTES:
            body = checked_fields(ROUTES[path], body)
        # A model that is not there yet is loaded beside the loop, where other answers go on.
        body = await asyncio.to_thread(self._ready, path, body)
        stop = body.get("stop")
        if stop is not None:
            send = _cutting(send, [stop] if isinstance(stop, str) else stop)
        try:
            await self.app(scope, _with_body(body, scope, receive), send)
        except (TypeError, ValueError, RuntimeError) as error:
            if "generation_config" not in body or out_of_memory(error):
                raise
            # Its settings are checked where they are used: all others are checked before.
            raise RequestError(f"generation_config: {_line(error)}", "generation_config") from error

    def _ready(self, path: str, body: Body) -> Body:
        """The request as the server is to see it, once its model is loaded."""
        if path not in ROUTES:
            self.models.load(body["model"])
            return body
        body = {"stream": False, **self.models.limited(ROUTES[path], body)}
        if "logit_bias" in body:
            body["logit_bias"] = {name: float(bias) for name, bias in body["logit_bias"].items()}
        return {name: value for name, value in body.items() if value != {}}


def _refusal(error: Exception) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    if isinstance(error, RequestError):
        kind, field, status = "invalid_request_error", error.field, error.status
    else:
        logger.error("a request ended in an error", exc_info=error)
        kind, field, status = "server_error", None, 500
    content = {"message": _line(error), "type": kind, "param": field, "code": None}
    return JSONResponse({"error": content}, status_code=status)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _with_body(body: Body, scope: Message, receive: Receive) -> Receive:
    """What the server receives: this body, and then whether the client goes away."""
    data = json.dumps(body).encode()
    others = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    scope["headers"] = [*others, (b"content-length", str(len(data)).encode())]
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    return receive_body


def _cutting(send: Send, stops: list[str]) -> Send:
    """Send an answer without its stop texts."""
    stream, start = StreamCutter(stops), dict[str, Any]()

    async def send_cut(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = dict(message)
            if _is_stream(start):
                await send(message)
            return
        data = message.get("body", b"")
        if _is_stream(start):
            await send({**message, "body": stream.feed(data)})
            return
        if start["status"] == 200:  # a whole answer comes in one message
            data = cut_answer(data, stops)
        others = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        start["headers"] = [*others, (b"content-length", str(len(data)).encode())]
        await send(start)
        await send({**message, "body": data})

    return send_cut


def _is_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start["headers"]
    )
