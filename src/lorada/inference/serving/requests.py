"""What a request may say, as OpenAI's API spells it."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lorada.inference.serving.refusals import Refused

MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 4, 10_000
LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
# Fields that would change the answer and that no engine here can follow, each with the value that
# changes nothing; and fields that do not touch the answer.
UNCHANGED = {
    "n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0, "top_logprobs": 0,
    "logit_bias": {}, "echo": False, "tools": [], "tool_choice": "none", "seed": None,
    "suffix": None, "response_format": {"type": "text"},
}  # fmt: skip
READ_OVER = ("user", "metadata", "store", "service_tier", "parallel_tool_calls")
COUNT = "a whole number from 1, or left out"
SWITCH = "true or false, or left out"
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(max_length=MOST_PROMPTS, fail_fast=True)]


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: bytes of a request.
        tokens: of an answer; None for what the model has room for.
        requests: prompts that are answered or wait at one time.
        seconds: from a request until its end.
        key: what every request under ``/v1`` must bring; None for nothing.
    """

    body: int = 2**20
    tokens: int | None = None
    requests: int = 256
    seconds: float = 600.0
    key: str | None = field(default=None, repr=False)


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


def optional(must_be: str, **limits: Any) -> Any:
    """A field that may be left out, and what it must be otherwise."""
    return Field(None, description=must_be, **limits)


class Request(Strict):
    """Fields of both kinds of request; the description of each says what it must be."""

    model: str = Field(description="a name that /v1/models lists")
    stream: bool | None = optional(SWITCH)
    stream_options: StreamOptions | None = optional(
        "an object with include_usage, which is true or false, or left out"
    )
    max_tokens: int | None = optional(COUNT, ge=1)
    temperature: float | None = optional("a number from 0 to 2, or left out", ge=0, le=2)
    top_p: float | None = optional("a number above 0 and up to 1, or left out", gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = optional(
        f"a text, or a list of at most {MOST_STOPS}, or left out"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, found))


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(
        description=f"a list of 1 to {MOST_TURNS} turns, each with a role (system, developer, user,"
        " assistant or tool) and a content (a text, or a list of parts of type text)",
        min_length=1, max_length=MOST_TURNS, fail_fast=True,
    )  # fmt: skip
    max_completion_tokens: int | None = optional(COUNT, ge=1)
    logprobs: bool | None = optional(SWITCH)


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens."""

    prompt: str | Ids | Texts | Prompts = Field(
        description=f"a text, a list of token ids, or a list of at most {MOST_PROMPTS} of either"
    )
    logprobs: int | None = optional("0, for the answer's tokens alone, or left out", ge=0, le=0)


class ClassifyRequest(Strict):
    """The body of ``POST /v1/classify``: texts to label."""

    model: str = Field(description="a name that /v1/models lists")
    input: str | Texts = Field(description=f"a text, or a list of at most {MOST_PROMPTS}")

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


AnyRequest = ChatRequest | CompletionRequest | ClassifyRequest
Kind = type[ChatRequest] | type[CompletionRequest] | type[ClassifyRequest]
JSON: TypeAdapter[Any] = TypeAdapter(Any)


def request_of(kind: Kind, body: bytes) -> AnyRequest:
    """The request in a body.

    Raises:
        Refused: for another, with the first field that is wrong, what it must be, and what it is.
    """
    try:
        fields = JSON.validate_json(body)
    except ValidationError as error:
        why = error.errors()[0]["ctx"]["error"]
        raise Refused(400, f"the request is not JSON: {why}; send one object") from error
    if not isinstance(fields, dict):
        raise Refused(400, f"the request must be one JSON object; it is {_short(repr(fields))}")
    for name, same in UNCHANGED.items():
        value = fields.pop(name, None)
        if value not in (None, same):
            kept = JSON.dump_json(same).decode()
            said = f"{name}: must be {kept} or left out, as no model here follows it"
            raise Refused(400, f"{said}; it is {_short(repr(value))}", param=name)
    try:
        return kind.model_validate({k: v for k, v in fields.items() if k not in READ_OVER})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, value = first["loc"], _short(repr(first["input"]))
    top = _named(place[0])
    if first["type"] == "extra_forbidden":
        said = f"{'.'.join(map(_named, place))}: must be left out, as there is no such field"
        raise Refused(400, f"{said}; it is {value}", param=top)
    # Of turns it is said which is wrong; in other fields that depends on which type is meant.
    shown = ".".join(map(_named, place[:3])) if top == "messages" and place[1:] else "it"
    wrong = "is missing" if first["type"] == "missing" else f"is {value}"
    said = f"{top}: must be {kind.model_fields[top].description}; {shown} {wrong}"
    raise Refused(400, said, param=top)


def _named(place: int | str) -> str:
    """A field's name, which may be anything, or a number in a list."""
    return _short(place if isinstance(place, str) and place.isidentifier() else repr(place))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
