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
LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
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
# Those that would change the answer: what they ask for, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[str, list[Any]]] = {
    "tools": ("tools", [[]]), "tool_choice": ("tools", ["none", "auto"]),
    "functions": ("tools", [[]]), "function_call": ("tools", ["none", "auto"]),
    "logprobs": ("log-probabilities", [False]), "top_logprobs": ("log-probabilities", [0]),
    "response_format": ("formats other than text", [{"type": "text"}]),
    "modalities": ("pictures and sound", [["text"]]), "audio": ("pictures and sound", []),
    "n": ("several answers to one prompt", [1]), "best_of": ("several answers to one prompt", [1]),
    "presence_penalty": ("penalties", [0, 0.0]), "frequency_penalty": ("penalties", [0, 0.0]),
    "logit_bias": ("biases of tokens", [{}, []]), "echo": ("prompts in the answer", [False]),
    "suffix": ("texts behind the answer", [""]), "reasoning_effort": ("levels of effort", []),
}  # fmt: skip

CLOSED = 499  # nginx's number for a client that went away before its answer


class Strict(BaseModel):
    """An object in a request, without values of another type.

    The description of each field says what it must be.
    """

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

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="system, developer, user, assistant or tool"
    )
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None,
        description='a text or a list of {"type": "text", "text": TEXT}, as pictures and sound are '
        "not offered here",
    )

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

    model: str = Field(description="a name from /v1/models")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='{"include_usage": true} or {"include_usage": false}'
    )
    max_tokens: int | None = Field(None, ge=1, description="a whole number from 1")
    temperature: float | None = Field(None, ge=0, le=2, description="a number from 0 to 2")
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0, at most 1")
    seed: int | None = Field(None, description="a whole number")
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = Field(
        None, description=f"a text, or a list of at most {MOST_STOPS}, or left out"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, found))


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(
        min_length=1, max_length=MOST_TURNS, fail_fast=True,
        description=f"a list of 1 to {MOST_TURNS:,} objects, each with a role and a content",
    )  # fmt: skip
    max_completion_tokens: int | None = Field(None, ge=1, description="a whole number from 1")


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens."""

    prompt: str | Ids | Texts | Prompts = Field(
        description=f"a text, a list of token ids, or a list of 1 to {MOST_PROMPTS} of either"
    )


class ClassifyRequest(Strict):
    """The body of ``POST /v1/classify``: texts, pairs of texts, or prompts with candidates."""

    model: str = Field(description="a name from /v1/models")
    input: Item | Items = Field(
        description='a text, {"text": TEXT, "text_pair": TEXT}, {"prompt": TEXT, "candidates": '
        f"TEXTS}}, or a list of 1 to {MOST_PROMPTS} of these"
    )

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
        raise _refusal(kind, error) from error
    for name, value in (found.model_extra or {}).items():
        what, nothing = NOT_OFFERED.get(name, ("", []))
        same = any(type(value) is type(one) and value == one for one in nothing)
        if value is not None and not same and name not in READ_OVER:
            shown = (name if name.isidentifier() else repr(name))[:LONGEST]
            said = f"{what} are not offered here" if what else "there is no such field here"
            raise Refused(400, f"{shown}: {said}; leave it out", param=shown)
    return found


def _refusal(kind: Kind, error: ValidationError) -> "Refused":
    """What to say of a body that is no request of a kind."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return Refused(400, f"the request is not JSON: {first['ctx']['error']}")
    if not first["loc"]:
        return Refused(400, f"the request must be one JSON object; it is {_short(first['input'])}")
    name, *inner = map(str, first["loc"])
    where, must = name, kind.model_fields[name].description
    if name == "messages" and inner[1:]:
        where, must = f"{name}.{inner[0]}.{inner[1]}", Message.model_fields[inner[1]].description
    is_now = "is missing" if first["type"] == "missing" else f"is {_short(first['input'])}"
    return Refused(400, f"{where} must be {must}; it {is_now}", param=name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class Refused(HTTPException):
    """A request that gets no answer; ``body`` is what is sent in its place."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
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
    said = " ".join(str(error).split())[:500]
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
