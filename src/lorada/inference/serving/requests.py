"""What a request may say, and how it is refused, as OpenAI's API spells both."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

MOST_ITEMS, MOST_STOPS = 256, 16
LONGEST = 500  # characters of a line, which may repeat what was sent
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Item = str | dict[str, Any]
Items = Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)]
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


class TextPart(Strict):
    """A part of a message; there are no pictures."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation; clients send empty fields of earlier answers along."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, "", [], {}) and name != "name":
                raise ValueError(f"{name!r} of a message is not offered here: leave it out")
        return self

    def turn(self) -> dict[str, str]:
        """The turn as it stands in rows to learn from."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class Request(Strict):
    """Fields of both kinds of request for text."""

    model: str
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
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

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: a text to continue, or its tokens."""

    prompt: str | Ids

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_one(cls, given: Any) -> Any:
        if isinstance(given, list) and given and not isinstance(given[0], int):
            raise ValueError("a request has one prompt: send several requests at the same time")
        return given


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


def refusal_of(error: Exception) -> Refused:
    """The refusal that an error becomes; of a fault of our own only the log says more."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # Starlette's, for addresses and methods
        said = f"there is nothing here for this request: {error.detail}"
        return Refused(error.status_code, said)
    if isinstance(error, ClientDisconnect):
        return Refused(CLOSED, "the client went away")
    return Refused(500, "the server failed at this answer")
