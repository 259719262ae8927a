"""What a request may say, and how it is refused, as OpenAI's API spells both."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from lorada.inference.serving.records import CLOSED

logger = logging.getLogger(__name__)
MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 4, 10_000
LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
Zero = Annotated[float, Field(ge=0, le=0)] | None
Empty = Annotated[list[Any] | dict[str, Any], Field(max_length=0)] | None


@dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    body: int = 2**20  # bytes of a request
    tokens: int | None = None  # of an answer; None for what the model has room for
    requests: int = 256  # prompts that are answered or wait at one time
    seconds: float = 600.0  # from a request until its end
    key: str | None = field(default=None, repr=False)  # of each request under ``/v1``, if any


class Strict(BaseModel):
    """An object in a request: without other fields, and without values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = None


class TextPart(Strict):
    """A part of a message; there are no pictures."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class Request(Strict):
    """Fields of both kinds of request for text.

    Of a field with several types the description says what it must be; else pydantic says it.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = Field(
        None, description=f"a text, or a list of at most {MOST_STOPS}, or left out"
    )

    # What would change the answer and no batch here can follow: only what changes nothing is taken.
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Empty = None
    seed: None = None
    suffix: None = None
    echo: Literal[False] | None = None
    tools: Empty = None
    tool_choice: Literal["none"] | None = None
    logprobs: Literal[False] | None = Field(None, description="left out, as none are offered")
    top_logprobs: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    # What does not touch the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None

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

    prompt: str | Ids | Texts | Prompts = Field(
        description=f"a text, a list of token ids, or a list of 1 to {MOST_PROMPTS} of either"
    )


class ClassifyRequest(Strict):
    """The body of ``POST /v1/classify``: texts to label."""

    model: str
    input: str | Texts = Field(description=f"a text, or a list of 1 to {MOST_PROMPTS}")


Kind = type[ChatRequest] | type[CompletionRequest] | type[ClassifyRequest]


def request_of(kind: Kind, body: bytes) -> ChatRequest | CompletionRequest | ClassifyRequest:
    """The request in a body.

    Raises:
        Refused: for another, with the first field that is wrong, what it must be, and what it is.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    value = "missing" if first["type"] == "missing" else _short(repr(first["input"]))
    if not first["loc"]:
        raise Refused(400, f"the request must be one JSON object: {first['msg']}; it is {value}")
    # A field's name may be anything.
    places = ((str(place), repr(place)) for place in first["loc"][:3])
    names = [_short(name if name.isidentifier() else shown) for name, shown in places]
    known = kind.model_fields.get(names[0])
    where, said = ".".join(names), first["msg"]
    if known is not None and known.description:
        where, said = names[0], f"must be {known.description}"
    raise Refused(400, f"{where}: {said}; it is {value}", param=names[0])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class Refused(HTTPException):
    """A request that gets no answer; ``body`` is what is sent in its place."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """The whole answer to the request."""
        return JSONResponse(self.body, self.status_code, self.headers)


class EngineFailed(RuntimeError):
    """An engine could not finish an answer; the next one may succeed."""


def refusal_of(error: Exception) -> Refused:
    """The refusal that an error becomes; of a fault of our own only the log says more."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # Starlette's, for addresses and methods
        said = f"there is nothing here for this request: {error.detail}"
        return Refused(error.status_code, said, headers=error.headers)
    if isinstance(error, ClientDisconnect):
        return Refused(CLOSED, "the client went away")
    if isinstance(error, TimeoutError):
        return Refused(504, "the time that this server gives a request is over", code="timeout")
    failed = isinstance(error, EngineFailed)
    said = " ".join(str(error).split())[:500]
    logger.error("a request failed: %s", said, exc_info=None if failed else error)
    if failed:
        return Refused(503, "the model failed at this answer: try again", code="engine_failed")
    return Refused(500, "the server failed at this answer")
