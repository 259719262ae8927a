"""What a request may say, how it is refused, as OpenAI's API spells both, and its line in the log.

No line has a text in it.
"""

import logging
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

logger = logging.getLogger(__name__)
MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 16, 10_000
LONGEST = 500  # characters of a line, which may repeat what was sent
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
Item = str | dict[str, Any]
Items = Annotated[list[Item], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
# Fields of OpenAI's API that change nothing here, whatever they say.
READ_OVER = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prediction", "parallel_tool_calls",
}  # fmt: skip
# Those that would change the answer, with the values that ask for nothing.
NOT_OFFERED: dict[str, list[Any]] = {
    "tools": [[]], "tool_choice": ["none", "auto"], "functions": [[]],
    "function_call": ["none", "auto"], "logprobs": [False], "top_logprobs": [0],
    "response_format": [{"type": "text"}], "modalities": [["text"]], "audio": [], "n": [1],
    "best_of": [1], "presence_penalty": [0, 0.0], "frequency_penalty": [0, 0.0],
    "logit_bias": [{}, []], "echo": [False], "suffix": [""], "reasoning_effort": [],
}  # fmt: skip
CLOSED = 499  # nginx's number for a client that went away before its answer


class Strict(BaseModel):
    """An object in a request, without values of another type."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = None


class TextPart(Strict):
    """A part of a message; there are no pictures."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation; what else it has, such as ``tool_calls``, is the template's."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    def turn(self) -> dict[str, Any]:
        """The turn as it stands in rows to learn from; without a content it needs tool calls."""
        more = {name: value for name, value in (self.model_extra or {}).items() if value}
        text = self.content
        if text is None and "tool_calls" not in more:
            raise Refused(400, "a turn has no content: give each a text", param="messages")
        if isinstance(text, list):
            text = "".join(part.text for part in text)
        return {"role": self.role, "content": text, **more}


class Request(Strict):
    """Fields of both kinds of request for text."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, found))


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens."""

    prompt: str | Ids | Texts | Prompts


class ClassifyRequest(Strict):
    """The body of ``POST /v1/classify``: texts, pairs of texts, or prompts with candidates."""

    model: str
    input: Item | Items

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The input as rows of a file."""
        items = self.input if isinstance(self.input, list) else [self.input]
        return [{"text": item} if isinstance(item, str) else item for item in items]


Kind = type[ChatRequest] | type[CompletionRequest] | type[ClassifyRequest]


def request_of(kind: Kind, body: bytes) -> ChatRequest | CompletionRequest | ClassifyRequest:
    """The request in a body."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults)
        param = str(faults[0]["loc"][0]) if faults[0]["loc"] else None
        raise Refused(400, said.lstrip(": "), param=param) from error
    for name, value in (found.model_extra or {}).items():
        nothing = NOT_OFFERED.get(name, [])
        same = any(type(value) is type(one) and value == one for one in nothing)
        if value is not None and not same and name not in READ_OVER:
            raise Refused(400, f"{name!r} is not offered here: leave it out", param=name)
    return found


class Refused(HTTPException):
    """A request that gets no answer; ``body`` is what is sent in its place."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        message = " ".join(message.split())[:LONGEST]
        super().__init__(status, message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """The whole answer to the request."""
        return JSONResponse(self.body, self.status_code)


class EngineFailed(RuntimeError):
    """An engine could not finish an answer; the next one may succeed."""


def refusal_of(error: Exception) -> Refused:
    """The refusal that an error becomes; of a fault of our own only the log says more."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # Starlette's, for addresses and methods
        said = f"there is nothing here for this request: {error.detail}"
        return Refused(error.status_code, said)
    if isinstance(error, ClientDisconnect):
        return Refused(CLOSED, "the client went away")
    failed = isinstance(error, EngineFailed)
    said = " ".join(str(error).split())[:LONGEST]
    logger.error("a request failed: %s", said, exc_info=None if failed else error)
    if failed:
        return Refused(503, "the model failed at this answer: try again", code="engine_failed")
    return Refused(500, "the server failed at this answer")


class Record:
    """One request, from its arrival to its end."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._start = endpoint, time.perf_counter()
        self.model, self.status = "-", CLOSED  # until the name and the HTTP status are known
        self.read = self.written = 0  # tokens of its prompts, and of its answers so far

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens, as OpenAI's API spells them."""
        both = {"prompt_tokens": self.read, "completion_tokens": self.written}
        return {**both, "total_tokens": self.read + self.written}

    def end(self) -> None:
        """Write its line."""
        logger.info(
            "%d %s model=%s read=%d written=%d total=%.3fs", self.status, self._endpoint,
            self.model, self.read, self.written, time.perf_counter() - self._start,
        )  # fmt: skip
